-- Moves entries from a dead letter queue to the tail of its ingress list, the oldest first.
-- KEYS: the dead letter list, the hash of reasons, the ingress list, the deaths hash, the tries hash, the lapses hash.
-- ARGV: 1 how many at most, 2 the least time to live of a waiting document in seconds. To move one entry, wherever it is in
--       the queue: 3 that entry. To make it look as if it had been postponed: 4 the stage that it failed at, 5 the time to
--       live of that record in seconds.
-- Returns how many were moved, or which key holds another type.

local UUID = '^' .. ('%x'):rep(8) .. '%-' .. (('%x'):rep(4) .. '%-'):rep(3) .. ('%x'):rep(12) .. '$'

for _, key in ipairs({KEYS[1], KEYS[3]}) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'list' and kind ~= 'none' then return key .. ' holds a ' .. kind .. ', not a list' end
end

local function oldest()
  if not ARGV[3] then return redis.call('LINDEX', KEYS[1], 0) end
  return redis.call('LPOS', KEYS[1], ARGV[3]) and ARGV[3]
end

-- A full Redis refuses the first write of a script if it may take memory. This one takes none and changes nothing.
redis.call('LTRIM', KEYS[1], 0, -1)
local moved = 0
while moved < tonumber(ARGV[1]) do
  local entry = oldest()
  if not entry then break end
  -- Pushed before it is removed: if the push is refused, the entry stays where it is.
  redis.call('RPUSH', KEYS[3], entry)
  if ARGV[3] then redis.call('LREM', KEYS[1], 0, entry) else redis.call('LPOP', KEYS[1]) end
  moved = moved + 1
  -- No failure from here on may keep the move from being counted.
  for _, key in ipairs({KEYS[2], KEYS[4], KEYS[5], KEYS[6]}) do redis.pcall('HDEL', key, entry) end
  if ARGV[4] then
    local now = redis.call('TIME')
    redis.pcall('HSET', KEYS[5], entry, '1 ' .. now[1] .. '.' .. ('%06d'):format(now[2]) .. ' 0.0 1 ' .. ARGV[4])
    redis.pcall('EXPIRE', KEYS[5], ARGV[5])
  end
  if entry:find(UUID) then
    local left = redis.call('TTL', 'vcon:' .. entry)
    if left >= 0 and left < tonumber(ARGV[2]) then redis.pcall('EXPIRE', 'vcon:' .. entry, ARGV[2]) end
  end
end
return moved
