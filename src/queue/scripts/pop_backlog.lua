-- Takes the oldest entry of a storage's queue that is backlog: one without a reason. Takes nothing while somebody
-- replays the queue.

-- How many entries one call looks at, which blocks Redis for some 8 ms. The next call continues there.
local REACH = 10000

local function pop(list)
  local kind = redis.call('TYPE', list).ok
  if kind ~= 'list' or redis.call('EXISTS', list .. ':replay-lock') == 1 then return false end
  local reasons, hint = 'conserver:dlq:' .. list:sub(5), 'conserver:backlog:' .. list:sub(5)
  -- Do not search a long queue of nothing but dead letters each time. Until the monitor drops stale reasons, some may belong
  -- to entries that others have removed.
  local length, dead = redis.call('LLEN', list), redis.pcall('HLEN', reasons)
  if type(dead) ~= 'number' or (length > 1000 and dead >= length) then return false end
  -- The number of dead letters before the last entry that was taken or looked at. If some of these have been removed since,
  -- this is too far: the search begins anew once it has reached the end.
  local from = tonumber(redis.pcall('GET', hint)) or 0
  if from >= length then from = 0 end
  local till = math.min(length, from + REACH)
  for first = from, till - 1, 100 do
    local entries = redis.call('LRANGE', list, first, math.min(first + 100, till) - 1)
    local known = redis.pcall('HMGET', reasons, unpack(entries))
    if known.err then return false end
    for i, entry in ipairs(entries) do
      if not known[i] then
        redis.call('LREM', list, 1, entry)
        local before = first + i - 1
        if before ~= from then redis.pcall('SET', hint, before, 'EX', 86400) end
        return entry
      end
    end
  end
  if till < length then
    redis.pcall('SET', hint, till, 'EX', 86400)
  elseif from > 0 then
    redis.call('DEL', hint)
  end
  return false
end

