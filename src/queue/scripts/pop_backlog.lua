-- Takes the oldest entry of a storage's queue that is no dead letter: one without a reason. Nothing while somebody
-- replays the queue.
local function pop(list)
  local kind = redis.call('TYPE', list).ok
  if kind ~= 'list' or redis.call('EXISTS', list .. ':replay-lock') == 1 then return false end
  local reasons = 'conserver:dlq:' .. list:sub(5)
  -- A long queue of nothing but dead letters is not looked through each time; some of the reasons may be of letters that
  -- others have taken, until the monitor drops those.
  local length, dead = redis.call('LLEN', list), redis.pcall('HLEN', reasons)
  if type(dead) ~= 'number' or (length > 1000 and dead >= length) then return false end
  for first = 0, length - 1, 100 do
    local entries = redis.call('LRANGE', list, first, first + 99)
    local known = redis.pcall('HMGET', reasons, unpack(entries))
    if known.err then return false end
    for i, entry in ipairs(entries) do
      if not known[i] then
        redis.call('LREM', list, 1, entry)
        return entry
      end
    end
  end
  return false
end

