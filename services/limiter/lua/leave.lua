-- A waiter asks no more: `waiter`.
forget_waiter(asked.waiter)
save()
