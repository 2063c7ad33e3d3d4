-- Moves entries from a dead letter queue to the tail of its ingress list, the oldest first.
-- KEYS: the dead letter list, the hash of reasons, the ingress list, the deaths hash, the tries hash.
-- ARGV: how many at most, the least time to live of a waiting document in seconds,
--       then, where one entry is meant: that entry, wherever it stands.
-- Answers how many were moved, or which key is no list.

local UUID = '^' .. ('%x'):rep(8) .. '%-' .. (('%x'):rep(4) .. '%-'):rep(3) .. ('%x'):rep(12) .. '$'

for _, key in ipairs({KEYS[1], KEYS[3]}) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'list' and kind ~= 'none' then return key .. ' holds a ' .. kind .. ', not a list' end
end

local function take()
  if not ARGV[3] then return redis.call('LPOP', KEYS[1]) end
  return redis.call('LREM', KEYS[1], 0, ARGV[3]) > 0 and ARGV[3]
end

local moved = 0
while moved < tonumber(ARGV[1]) do
  local entry = take()
  if not entry then break end
  redis.call('RPUSH', KEYS[3], entry)
  moved = moved + 1
  -- Nothing from here on may keep the move from being counted.
  for _, key in ipairs({KEYS[2], KEYS[4], KEYS[5]}) do redis.pcall('HDEL', key, entry) end
  if entry:find(UUID) then
    local left = redis.call('TTL', 'vcon:' .. entry)
    if left >= 0 and left < tonumber(ARGV[2]) then redis.pcall('EXPIRE', 'vcon:' .. entry, ARGV[2]) end
  end
end
return moved
