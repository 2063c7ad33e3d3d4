-- Which lanes have a link at work that writes a vCon by itself: for each, a digest of its name and until when that counts,
-- as its worker may die. Goes before the scripts that need it.

local function lane_at_work(lane, time)
  return redis.sha1hex(lane) .. '@' .. (redis.call('TIME')[1] + time) .. ' '
end

-- Those of a vCon, but for one lane.
local function lanes_at_work(hash, uuid, lane)
  local kept, now, others = redis.pcall('HGET', hash, uuid), tonumber(redis.call('TIME')[1]), ''
  if type(kept) ~= 'string' then return '' end
  local own = redis.sha1hex(lane)
  for name, till in kept:gmatch('(%x+)@(%d+) ') do
    if name ~= own and tonumber(till) > now then others = others .. name .. '@' .. till .. ' ' end
  end
  return others
end

