"""What the exercises of chapter 05 have in common."""

CHAPTER = "05_awq"
