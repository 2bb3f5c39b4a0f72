"""What the exercises of chapter 10 share."""

CHAPTER = "10_serving"
