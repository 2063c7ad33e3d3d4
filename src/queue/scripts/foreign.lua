-- Which lanes have a link at work that writes a vCon by itself: for each, a digest of its worker's claims key, its number
-- and until when that counts, as its worker may die. Goes before the scripts that need it.

local function lane_at_work(worker, lane, time)
  return redis.sha1hex(worker) .. '-' .. lane .. '@' .. (redis.call('TIME')[1] + time) .. ' '
end

-- Those of a vCon, but for one lane of a worker, or for all of its lanes if none is named.
local function lanes_at_work(hash, uuid, worker, lane)
  local kept, now, others = redis.pcall('HGET', hash, uuid), tonumber(redis.call('TIME')[1]), ''
  if type(kept) ~= 'string' then return '' end
  local own = redis.sha1hex(worker)
  for name, number, till in kept:gmatch('(%x+)%-(%d+)@(%d+) ') do
    local is_own = name == own and (not lane or number == lane)
    if not is_own and tonumber(till) > now then others = others .. name .. '-' .. number .. '@' .. till .. ' ' end
  end
  return others
end

-- That link, or those links, are done with the vCon. What was kept for them goes with the last.
local function end_work(hash, list, uuid, worker, lane)
  local others = lanes_at_work(hash, uuid, worker, lane)
  -- A full Redis refuses the first write of a script, if it may take memory. This one takes none and changes nothing.
  redis.call('HDEL', hash, '')
  if others ~= '' then
    redis.call('HSET', hash, uuid, others)
  else
    redis.call('HDEL', hash, uuid)
    redis.call('DEL', list)
  end
end

