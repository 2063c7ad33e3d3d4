-- Takes the next entry for one lane.
-- KEYS: the worker's claims hash, the lease on the instance's name, the set of instances, the instance's set of
--       workers, then the ingress lists in order.
-- ARGV: lane, the most bytes of a plain string document to hand over, the record of our lease, its time to live,
--       the instance, the worker, the time to live that the document gets where less than half of it is left.
-- Answers {record, list, entry, context, kind, document, fault, deaths}; record is '' where all lists are empty.
-- Where another daemon has the name, kind is 'not-ours' and document its record.
-- A claim the lane already holds is answered again: its first answer, or its finish, was lost. Where another daemon
-- took it, which had the name in the meantime, kind is 'left-behind'.

local UUID = '^' .. ('%x'):rep(8) .. '%-' .. (('%x'):rep(4) .. '%-'):rep(3) .. ('%x'):rep(12) .. '$'

local function document(entry)
  if not entry:find(UUID) then return 'not-a-uuid', '' end
  local key = 'vcon:' .. entry
  keep_alive(key, ARGV[7])
  local kind = redis.call('TYPE', key).ok
  if kind == 'string' then
    if redis.call('STRLEN', key) > tonumber(ARGV[2]) then return 'string-large', '' end
    return kind, redis.call('GET', key)
  elseif kind == 'ReJSON-RL' then
    local text = redis.pcall('JSON.GET', key)
    if type(text) == 'table' then
      -- What the user may not do is no fault of the document: it is waited out.
      local err = text.err or ''
      if err:find('NOPERM') or err:find('user executing the script') then error(text) end
      return 'unreadable', err
    end
    return kind, text or ''
  end
  return kind, ''
end

local function deaths(entry)
  local counted = redis.pcall('HGET', 'conserver:deaths', entry)
  return type(counted) == 'string' and counted or ''
end

local holder = redis.call('GET', KEYS[2])
if not holder then
  -- Nothing that grows comes first, so that the lease can be had on a server that is full.
  redis.call('DEL', KEYS[2])
  redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[4])
  redis.call('SADD', KEYS[3], ARGV[5])
elseif holder ~= ARGV[3] then
  return {'', '', '', '', 'not-ours', holder, '', ''}
end

local by = redis.sha1hex(ARGV[3]):sub(1, 12)
local held = redis.call('HGET', KEYS[1], ARGV[1])
if held then
  local claim = read_record(held)
  if claim and claim.by ~= '' and claim.by ~= by then
    return {held, claim.list, claim.uuid, claim.context, 'left-behind', '', '', ''}
  elseif claim then
    local kind, text = document(claim.uuid)
    return {held, claim.list, claim.uuid, claim.context, kind, text, '', deaths(claim.uuid)}
  end
  -- The first write of a script, if it may take memory, is refused by a full Redis: this one takes none.
  redis.call('HDEL', KEYS[1], '')
  redis.call('RPUSH', 'conserver:unreadable', held)
  redis.call('HDEL', KEYS[1], ARGV[1])
end

local fault = ''
for i = 5, #KEYS do
  local list = KEYS[i]
  local entry = redis.pcall('LPOP', list)
  if type(entry) == 'table' then
    -- What is wrong with one list keeps nobody from the others; what is wrong with the server does.
    local err = entry.err or ''
    if not (err:find('WRONGTYPE') or err:find('NOPERM') or err:find('user executing the script')) then return entry end
    fault = list .. ': ' .. err
  elseif entry then
    local context = false
    if entry:find(UUID) then
      local popped = redis.pcall('LPOP', 'context:' .. list .. ':' .. entry)
      if type(popped) == 'string' then context = popped end
    end
    local now = redis.call('TIME')
    local record = '{"list":' .. cjson.encode(list) .. ',"uuid":' .. cjson.encode(entry)
      .. ',"since":' .. now[1] .. '.' .. ('%06d'):format(now[2])
      .. ',"by":"' .. by .. '"'
    if context then record = record .. ',"context":' .. cjson.encode(context) end
    record = record .. '}'
    -- A full Redis does not refuse it, being the second write; the rights of a user may.
    local kept = redis.pcall('HSET', KEYS[1], ARGV[1], record)
    if type(kept) == 'table' then
      if context then redis.pcall('LPUSH', 'context:' .. list .. ':' .. entry, context) end
      redis.call('LPUSH', list, entry)
      return kept
    end
    redis.pcall('SADD', KEYS[4], ARGV[6])
    local kind, text = document(entry)
    return {record, list, entry, context or '', kind, text, fault, deaths(entry)}
  end
end
return {'', '', '', '', '', '', fault, ''}
