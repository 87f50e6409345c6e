-- How the script ends: all questions are answered, then the bucket's state is written.
local answers = {}
for number, question in ipairs(given.questions) do
  asked = question
  answers[number] = actions[asked.act]()
end
save()
return answers
