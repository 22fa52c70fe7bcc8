"""What is asked of a new `.qlm` file before it gets its name (`docs/conversion.md`).

`self_check` asks; `weights` and `forward` compute, in float32 and a slab at a time;
`readings` finds out whether another rotary embedding fits the weights better.
"""
