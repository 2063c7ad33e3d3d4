-- Whether any of the open ingress lists holds work. Read-only: a connection with tracking switched on is told
-- of the next change of any of these keys.
-- KEYS: the ingress lists, the open ones first.
-- ARGV: how many are open.

local waiting = 0
for i, list in ipairs(KEYS) do
  local length = redis.pcall('LLEN', list)
  if i <= tonumber(ARGV[1]) and type(length) == 'number' and length > 0 then waiting = 1 end
end
return waiting
