"""What the exercises of chapter 05 share."""

CHAPTER = "05_awq"
