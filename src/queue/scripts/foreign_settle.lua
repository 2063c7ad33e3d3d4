-- A document has all that was kept until now: what is kept later is laid over it alone.
-- KEYS: the vCon's key, the list of what was written meanwhile.
-- ARGV: the text of that document, or '' if it was kept itself when it was written.
-- Returns 1, or 0 if another document stands there by now.

local last, now = redis.call('LINDEX', KEYS[2], -1), text_under(KEYS[1])
if not last or (ARGV[1] ~= '' and ARGV[1] ~= now) then return 0 end
if last:sub(2) == now then
  redis.pcall('LSET', KEYS[2], -1, '!' .. now)
elseif ARGV[1] ~= '' then
  redis.pcall('RPUSHX', KEYS[2], '!' .. now)
else
  return 0
end
return 1
