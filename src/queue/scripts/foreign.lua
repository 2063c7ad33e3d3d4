-- Which lanes have a link at work that writes a vCon by itself: for each, a digest of its worker's claims key, its
-- number, how many texts were kept when it began, and until when that counts, as its worker may die. Goes before the
-- scripts that need it.

local LANE = '(%x+)%-(%d+):(%d+)@(%d+) '

local function lane_at_work(name, lane, begin, till)
  return name .. '-' .. lane .. ':' .. begin .. '@' .. till .. ' '
end

local function lanes_of(hash, uuid)
  local lanes = redis.pcall('HGET', hash, uuid)
  return type(lanes) == 'string' and lanes or ''
end

-- Those of a vCon, but for one lane of a worker, or for all of its lanes if none is named.
local function lanes_at_work(hash, uuid, worker, lane)
  local own, now, others = redis.sha1hex(worker), tonumber(redis.call('TIME')[1]), ''
  for name, number, begin, till in lanes_of(hash, uuid):gmatch(LANE) do
    local is_own = name == own and (not lane or number == lane)
    if not is_own and tonumber(till) > now then others = others .. lane_at_work(name, number, begin, till) end
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

