"""What `hermetiq.inspect`, `.export`, `.verify` and `.publish` are: the command line's work, as functions.

Each has the options of its command, takes them as plain values, tells a callback how far it is, and raises
`HermetiqError` where the command would exit. One module a function, so that a script loads what it calls and no more.
"""
