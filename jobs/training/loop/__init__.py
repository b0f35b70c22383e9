"""From the first step to the last one.

before      allocator, batch_size (`--batch-size auto`)
steps       step_loop ─▶ validation ─▶ saving
end         stopping (without progress, or by a signal)
"""
