-- A waiter asks no more: `waiter`.
function actions.leave()
  forget_waiter(asked.waiter)
  return 1
end
