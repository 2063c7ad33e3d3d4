-- Which lanes have a link that writes a vCon directly at the moment. For each lane there is a digest of its worker's claims
-- key, its number, the index of the recorded text that the link began with, the index of the first text that it may have
-- overwritten, and the time at which this expires, as its worker may die. Goes before the scripts that need it.

local LANE = '(%x+)%-(%d+):(%d+)%+(%d+)@(%d+) '

local function lane_at_work(name, lane, base, start, till)
  return name .. '-' .. lane .. ':' .. base .. '+' .. start .. '@' .. till .. ' '
end

local function lanes_of(hash, uuid)
  local lanes = redis.pcall('HGET', hash, uuid)
  return type(lanes) == 'string' and lanes or ''
end

-- The lanes of a vCon without one lane of a worker, or without all of its lanes if none is named.
local function lanes_at_work(hash, uuid, worker, lane)
  local own, now, others = redis.sha1hex(worker), tonumber(redis.call('TIME')[1]), ''
  for name, number, base, start, till in lanes_of(hash, uuid):gmatch(LANE) do
    local is_own = name == own and (not lane or number == lane)
    if not is_own and tonumber(till) > now then others = others .. lane_at_work(name, number, base, start, till) end
  end
  return others
end

local function set_lanes(hash, uuid, lanes)
  -- A full Redis refuses the first write of a script if it may take memory. This one takes none and changes nothing.
  redis.call('HDEL', hash, '')
  if lanes ~= '' then redis.call('HSET', hash, uuid, lanes) else redis.call('HDEL', hash, uuid) end
end

-- Ends the direct writes of one lane, or of all lanes of a worker. The last one to end removes the recorded texts.
local function end_work(hash, list, uuid, worker, lane)
  local others = lanes_at_work(hash, uuid, worker, lane)
  set_lanes(hash, uuid, others)
  if others == '' then redis.call('DEL', list) end
end

-- The text of a document, whether it is a string or RedisJSON.
local function text_under(key)
  local text = redis.pcall('GET', key)
  if type(text) ~= 'string' then text = redis.pcall('JSON.GET', key) end
  return type(text) == 'string' and text or ''
end

-- The number of recorded texts, and the last of them; 0 and nil if there is no list.
local function last_kept(list)
  local last = redis.pcall('LINDEX', list, -1)
  if type(last) ~= 'string' then return 0 end
  return redis.call('LLEN', list), last
end

-- The text that a link began with, and those that it may have overwritten since, without the texts that a later one was
-- made of: that one includes them. Empty if there are none. Reads one text after another, as all together may be large.
local function written_over(list, base, start)
  local texts, is_in_next = {}, false
  for i = last_kept(list) - 1, start, -1 do
    local kept = redis.call('LINDEX', list, i)
    local how = kept:sub(1, 1)
    if how == '+' or how == '*' then
      if not is_in_next then table.insert(texts, 1, kept:sub(2)) end
      is_in_next = how == '+'
    end
  end
  if #texts > 0 then table.insert(texts, 1, (redis.call('LINDEX', list, base) or ''):sub(2)) end
  return texts
end
