"""A fuzzer of the public functions: ``python -m tests.fuzz --help``, from the root of the checkout.

One call: a function is drawn, then its arguments (`functions`), in memory of every kind whose every byte is watched
(`memory`), some of them such that the call has to be refused (`case`). The call is made on one of the backends and
instruction sets, and judged (`oracle`) by the reference backend's answer for plain copies of the same arguments.
Calls are made in a process of their own (`worker`), which may crash: the parent (`__main__`) says at which.

A call follows from (seed, number) alone: what it prints, ``--seed S --only-call K``, repeats it.

What is right about numbers is never written here a second time; which calls must be refused is, in a few rules.
"""
