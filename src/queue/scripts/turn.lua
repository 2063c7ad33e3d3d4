-- Finishes the vCons of several lanes of a worker that were processed in the usual way, and takes the next entry for
-- each. What is not usual is left to `finish` and `claim`: the lane is told so, and nothing is done for it.
-- KEYS: 1 the worker's claims hash, 2 the lease on the instance's name, then the ingress lists, then the egress lists.
-- ARGV: 1 the record of our lease, 2 the time to live that a document gets when less than half of it is left, 3 the
--       mark of our lease, 4 how many ingress lists, then the name of each as JSON, then for each lane: lane, the time
--       of its request, record, the UUID to announce, and of its document 'no', 'is' or 'put' with the text that must
--       stand there and the text to put.
-- Returns for each lane an array: first 1 when it is finished, 2 when the document had been deleted meanwhile, 0 when
-- the claim is not ours any more, 'changed', 'unwritten' with an error behind it, or 'unusual'; after 1 and 2 what
-- `claim` returns, or nothing if that is to be asked for. Its kind is 'look' if the claim is to be looked at alone.

local LONGEST, OF_A_LANE = 1048576, 7
local UUID = '^%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$'
local lists = tonumber(ARGV[4])
local first = 4 + lists
local count = (#ARGV - first) / OF_A_LANE

local lanes, answers = {}, {}
for i = 1, count do lanes[i] = ARGV[first + (i - 1) * OF_A_LANE + 1] end
local held = redis.call('HMGET', KEYS[1], unpack(lanes))

-- Writes come first: the server may refuse them.
local done, ids = {}, {}
local is_kept
for i = 1, count do
  local at = first + (i - 1) * OF_A_LANE
  local id, how = ARGV[at + 4], ARGV[at + 5]
  local outcome = 1
  if held[i] ~= ARGV[at + 3] then
    outcome = 0
  elseif how ~= 'no' then
    local key = 'vcon:' .. id
    local now, text = redis.pcall('GET', key), ARGV[at + 7]
    if not now then
      outcome = 2
    elseif now ~= text then
      if now ~= ARGV[at + 6] then
        outcome = 'changed'
      elseif how == 'put' then
        if is_kept == nil then is_kept = redis.call('EXISTS', 'conserver:progress', 'conserver:foreign') > 0 end
        if is_kept then
          outcome = 'unusual'
        else
          local left = redis.call('PTTL', key)
          local written
          if left > 0 then
            written = redis.pcall('SET', key, text, 'PX', left)
          else
            written = redis.pcall('SET', key, text)
          end
          if written.err then outcome, answers[i] = 'unwritten', {'unwritten', written.err} end
        end
      end
    end
  end
  answers[i] = answers[i] or {outcome}
  if outcome == 1 or outcome == 2 then
    done[#done + 1] = i
    ids[#ids + 1] = id
  end
end
if #done == 0 then return answers end

local released = {}
for n, i in ipairs(done) do released[n] = lanes[i] end
-- A full Redis refuses the first write of a script, if it may take memory. This one takes none.
redis.call('HDEL', KEYS[1], unpack(released))
for e = 3 + lists, #KEYS do
  local pushed = redis.pcall('RPUSH', KEYS[e], unpack(ids))
  if type(pushed) == 'table' then
    -- The claims come first, as the user may not have the right to `RPOP`.
    for _, i in ipairs(done) do
      redis.call('HSET', KEYS[1], lanes[i], held[i])
      answers[i] = {'unusual'}
    end
    for before = 3 + lists, e - 1 do
      for _ = 1, #ids do redis.pcall('RPOP', KEYS[before]) end
    end
    return answers
  end
end

if redis.call('GET', KEYS[2]) ~= ARGV[1] then return answers end

-- Takes up to so many entries from a list.
local function pop(list, wanted)
  if wanted > 1 then
    local entries = redis.pcall('LPOP', list, wanted)
    if not entries then return {} end
    if not entries.err then return entries end
    -- Before Redis 6.2 there is no count.
  end
  local entry = redis.pcall('LPOP', list)
  if not entry then return {} end
  return type(entry) == 'table' and entry or {entry}
end

local taken, fault = {}, ''
for l = 1, lists do
  while #taken < #done do
    local list, wanted = KEYS[2 + l], #done - #taken
    local entries = pop(list, wanted)
    if entries.err then
      if not (entries.err:find('WRONGTYPE') or entries.err:find('NOPERM')) then break end
      fault = list .. ': ' .. entries.err
      break
    end
    if #entries == 0 then break end
    for _, entry in ipairs(entries) do taken[#taken + 1] = {entry, l} end
  end
end
local nothing = {'', '', '', '', '', '', fault, '', ''}
if #taken == 0 then
  for _, i in ipairs(done) do answers[i][2] = nothing end
  return answers
end

local contexts = {}
for n, it in ipairs(taken) do
  it[3] = it[1]:find(UUID) and true or false
  contexts[n] = 'context:' .. KEYS[2 + it[2]] .. ':' .. it[1]
end
local has_contexts = redis.call('EXISTS', unpack(contexts)) > 0

local fields = {}
for n, it in ipairs(taken) do
  local i = done[n]
  local entry, l = it[1], it[2]
  local encoded = it[3] and '"' .. entry .. '"' or cjson.encode(entry)
  local record = '{"list":' .. ARGV[4 + l] .. ',"uuid":' .. encoded .. ',"since":'
    .. ARGV[first + (i - 1) * OF_A_LANE + 2] .. ',"by":"' .. ARGV[3] .. '"'
  it[5] = ''
  if has_contexts and it[3] then
    local context = redis.pcall('LPOP', contexts[n])
    if type(context) == 'string' then
      it[5] = context
      record = record .. ',"context":' .. cjson.encode(context)
    end
  end
  it[4] = record .. '}'
  fields[#fields + 1] = lanes[i]
  fields[#fields + 1] = it[4]
end
-- A full Redis does not refuse it, being no first write; the rights of a user may.
local kept = redis.pcall('HSET', KEYS[1], unpack(fields))
if type(kept) == 'table' then
  for n = #taken, 1, -1 do
    local it = taken[n]
    if it[5] ~= '' then redis.pcall('LPUSH', contexts[n], it[5]) end
    redis.call('LPUSH', KEYS[2 + it[2]], it[1])
  end
  return answers
end

local has_notes =
  redis.call('EXISTS', 'conserver:deaths', 'conserver:lapses', 'conserver:tries', 'conserver:progress') > 0
for n, it in ipairs(taken) do
  local kind, text, deaths = 'not-a-uuid', '', ''
  if has_notes then
    local counted = redis.pcall('HGET', 'conserver:deaths', it[1])
    if type(counted) == 'string' then
      deaths = counted
    elseif redis.pcall('HEXISTS', 'conserver:lapses', it[1]) == 1
      or redis.pcall('HEXISTS', 'conserver:tries', it[1]) == 1 then
      deaths = '0'
    end
  end
  if it[3] then
    local key = 'vcon:' .. it[1]
    local left, ttl = redis.call('PTTL', key), tonumber(ARGV[2])
    if left >= 0 and left < ttl * 500 then redis.pcall('EXPIRE', key, ttl) end
    -- One byte more than is handed over tells a longer one.
    text = redis.pcall('GETRANGE', key, 0, LONGEST)
    local has_progress = has_notes
      and redis.pcall('HEXISTS', 'conserver:progress', KEYS[2 + it[2]] .. '\n' .. it[1]) ~= 0
    if type(text) ~= 'string' or text == '' or #text > LONGEST or has_progress then
      kind, text = 'look', ''
    else
      kind = 'string'
    end
  end
  answers[done[n]][2] = {it[4], KEYS[2 + it[2]], it[1], it[5], kind, text, fault, deaths, ''}
end
for n = #taken + 1, #done do answers[done[n]][2] = nothing end
return answers
