-- Whether any of the ingress lists holds work. Read-only: a connection with tracking switched on is told
-- of the next change of any of these keys.
-- KEYS: the ingress lists.

local waiting = 0
for _, list in ipairs(KEYS) do
  local length = redis.pcall('LLEN', list)
  if type(length) == 'number' and length > 0 then waiting = 1 end
end
return waiting
