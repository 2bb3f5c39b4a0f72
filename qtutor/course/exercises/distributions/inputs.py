"""What the exercises of chapter 03 have in common."""

CHAPTER = "03_distributions"
