"""What the exercises of chapter 12 share."""

CHAPTER = "12_choose"
