-- Hands out tokens for requests to a server, as many as its budget has, and leases the slots in which they are made.
-- KEYS: the budget (a hash), the leases of its slots (a sorted set: lease -> when it runs out, in ms).
-- ARGV: 1 requests in a second (0: any number), 2 how many tokens the bucket holds, 3 how many slots there are (0: any
--       number), 4 how many tokens are wanted (0: only the rest is done), 5 for how many ms a slot is leased, 6 what names
--       of leases begin with, 7 the keys' time to live, in seconds, 8 for how many ms more nobody is to ask the server (0:
--       it has not said), 9 how many tokens come back unused, 10 the time when these were handed out, 11 for how many ms a
--       token may come back, 12 for how many µs a token may be handed out before it is due, then the names of leases to end.
-- Returns {in how many µs each token that is handed out is due, µs until there is another, tokens and slots that are left,
-- the time in µs, µs until the first lease of a slot runs out if none is free}.
-- A token is worth a request that begins soon; so the bucket holds less than the burst, by what the server may get late.
-- All times are this server's. A budget that is not there (new, or lost with this server's data) has one token: what was
-- handed out before that is under way still. A clock that was set back costs no tokens and brings none.

local rate, room, slots, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local ahead = tonumber(ARGV[12])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local due, slot_due = 0, 0

-- A full Redis refuses the first write of a script if it may take memory. This one takes none and changes nothing.
redis.call('HDEL', KEYS[1], '')
for i = 13, #ARGV do redis.call('ZREM', KEYS[2], ARGV[i]) end

-- `level` is what the bucket holds at the time `at`: now, or when the last token is due that was handed out; `last` is when
-- that was, and how many with it.
-- `longest` is for how long a slot was leased at most.
local kept = redis.call('HMGET', KEYS[1], 'level', 'at', 'not_before', 'last', 'longest')
local level, at, not_before = tonumber(kept[1]), tonumber(kept[2]), tonumber(kept[3])
if not level or not at then level, at = 1, now end
if at > now + ahead then at = now end
local since = math.max(now - at, 0)
at = math.max(at, now)
if rate > 0 then
  level = math.min(room, level + since * rate / 1000000)
  local back = tonumber(ARGV[9])
  if back > 0 and now - tonumber(ARGV[10]) < tonumber(ARGV[11]) * 1000 and now >= tonumber(ARGV[10]) then
    if kept[4] == ARGV[10] .. ':' .. ARGV[9] then
      level = math.max(level, math.min(room, level + back))
    else
      -- Others were taken since. Without this one, the bucket would have been full then if it has little room.
      level = math.max(level, math.min(at > now and room - 1 or room, level + back * math.min(1, room - 1)))
    end
  end
end

local asked, most = tonumber(ARGV[8]), wanted
if asked > 0 then not_before = math.max(not_before or 0, now + asked * 1000) end
-- Nobody has to wait for more than a day, unless the clock was set back since.
if not_before and not_before > now and not_before <= now + 86400000000 then
  most, due = 0, not_before - now
else
  not_before = nil
end

local free
if slots > 0 then
  local ms = math.floor(now / 1000)
  local longest = math.max(tonumber(kept[5]) or 0, wanted > 0 and tonumber(ARGV[5]) or 0)
  if longest > 0 then
    -- No lease lasts longer than it could when it began, even if the clock was set back since.
    local ends = ('%.0f'):format(ms + longest)
    local later = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ends, '+inf')
    for _, lease in ipairs(later) do redis.call('ZADD', KEYS[2], ends, lease) end
    redis.call('HSET', KEYS[1], 'longest', longest)
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ms)
  free = math.max(slots - redis.call('ZCARD', KEYS[2]), 0)
  if free < 1 then
    local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
    slot_due = (tonumber(first[2]) - ms) * 1000
  end
  most = math.min(most, free)
end

local waits = {}
for i = 1, most do
  if rate > 0 then
    if level < 1 then
      local later = math.ceil(at + (1 - level) / rate * 1000000)
      if later > now + ahead then break end
      at, level = later, 1
    end
    level = level - 1
  end
  waits[i] = at - now
end
local granted = #waits
if slots > 0 then
  local ends = math.floor(now / 1000) + tonumber(ARGV[5])
  for i = 1, granted do redis.call('ZADD', KEYS[2], ends, ARGV[6] .. i) end
  redis.call('EXPIRE', KEYS[2], ARGV[7])
end
if rate > 0 and level < 1 then due = math.max(due, at - now + (1 - level) / rate * 1000000 - ahead) end
local left = math.huge
if rate > 0 then left = at > now and 0 or math.floor(level) end
if free then left = math.min(left, free - granted) end
if not_before then left = 0 end

redis.call('HSET', KEYS[1], 'level', ('%.6f'):format(level), 'at', ('%.0f'):format(at))
if granted > 0 then redis.call('HSET', KEYS[1], 'last', ('%.0f:%d'):format(now, granted)) end
if not_before then
  redis.call('HSET', KEYS[1], 'not_before', ('%.0f'):format(not_before))
elseif kept[3] then
  redis.call('HDEL', KEYS[1], 'not_before')
end
redis.call('EXPIRE', KEYS[1], ARGV[7])
return {waits, math.ceil(due), left, ('%.0f'):format(now), slot_due}
