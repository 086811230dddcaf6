"""Names of files that a remote shell takes for something else, if they are not quoted."""

HOSTILE = [
    "a b.tflite",
    "$(touch pwned).tflite",
    "`touch pwned`",
    "; touch pwned ;",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "a\nb",
    "-rf",
    "*",
    "~root",
    "\\",
    "é 猫 !x",
    "a && touch pwned",
    "| touch pwned",
    "> pwned",
]
