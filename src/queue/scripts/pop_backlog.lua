-- Takes the oldest entry of a storage's queue that is no dead letter: one without a reason. Nothing while somebody
-- replays the queue.
local function pop(list)
  local kind = redis.call('TYPE', list).ok
  if kind ~= 'list' or redis.call('EXISTS', list .. ':replay-lock') == 1 then return false end
  local reasons = 'conserver:dlq:' .. list:sub(5)
  -- Mostly all of them are dead letters, or none is.
  local dead = redis.pcall('HLEN', reasons)
  if type(dead) ~= 'number' or dead >= redis.call('LLEN', list) then return false end
  for first = 0, redis.call('LLEN', list) - 1, 100 do
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

