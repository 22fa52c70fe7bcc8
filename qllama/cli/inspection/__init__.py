"""What `qllama inspect` shows: facts drawn from a `.qlm` file, and their renderings.

`facts` reads the file; `tables` and `diagram` turn facts into text and read no file.
"""
