"""What `qllama inspect` shows of a model, and how.

`subject` reads a `.qlm` file or a checkpoint into one record; `modules`, `costs` and
`facts` draw from it what is worth knowing; `card` words that as titled tables, which
`tables` renders; `diagram` draws it. Nothing after `subject` reads a file.
"""
