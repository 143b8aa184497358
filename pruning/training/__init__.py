"""Gradual training against the dense model as teacher.

`model` is what is trained, `network` the student with masks and rounding, `plan` the schedule,
`batches` and `targets` what is learnt from, `losses` how far the student is, `masks` which blocks
go next, `observe` and `quantizers` the rounding, `precision` how exactly products are, `trainer`
the training itself, `state` and `checkpoint` how it goes on after a stop.
"""
