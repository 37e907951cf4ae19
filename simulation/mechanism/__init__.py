"""The audit of the mechanism: devices as they are, asked as a server asks, with inputs that the auditor knows.

    residuals     is the noise there, fresh, whole and nobody's guess          (known inputs)
    sensitivity   can one person move an answer further than the clip          (neighbouring people)
    one run       can it be told who was in one sum                            (Steinke, Nasr, Jagielski 2023)
    trade-off     does the trade of false for missed alarms fit the charges    (Gaussian differential privacy)

Each layer runs `client.agent.Device` and the private sum, not a copy of them. Only training is a plain function here,
so that the auditor knows what went in; no layer needs a model, and none says more than its numbers show.
"""
