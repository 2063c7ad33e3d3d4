-- Finishes the vCons of several lanes of a worker that were processed in the usual way, and takes the next entry for
-- each. What is not usual is left to `finish` and `claim`: the lane is told so, and nothing is done for it.
-- KEYS: 1 the worker's claims hash, 2 the lease on the instance's name, 3 the list of what the worker has taken, then
--       the ingress lists, then the egress lists.
-- ARGV: 1 the record of our lease, 2 the time to live that a document gets when less than half of it is left, 3 the
--       mark of our lease, 4 how many ingress lists, then the name of each as JSON, then for each lane: lane, the time
--       of its request, the token of its claim, the UUID to announce, and of its document 'no', 'is' with the text that must stand
--       there, or 'put' with that and the text to put.
-- Returns for each lane an array: first 1 when it is finished, 2 when the document had been deleted meanwhile, 0 when
-- the claim is not ours any more, 'changed', 'unwritten' with an error behind it, or 'unusual'; after 1 and 2, unless
-- that is to be asked for, {token, list, entry, kind, context, deaths, fault}; token is '' if all lists are empty,
-- kind is 'look' if the claim is to be looked at alone. Documents are not handed over: where kind is 'string', `SORT`
-- gets them for the first entries of the list of what was taken, one for each lane, the last lane first. That costs the
-- server less than half of what a script costs that returns them.

-- Whether it is a UUID, the lane sees: a pattern costs more than the rest of what is done for an entry.
local UUID_LENGTH = 36
local call, pcall = redis.call, redis.pcall
local lists = tonumber(ARGV[4])
local answers, count = {}, 0

local function turn()
  -- Where the arguments of each lane begin.
  local first, lanes = {}, {}
  local at = 5 + lists
  while ARGV[at] do
    count = count + 1
    first[count], lanes[count] = at, ARGV[at]
    local how = ARGV[at + 4]
    at = at + (how == 'no' and 5 or how == 'is' and 6 or 7)
  end
  local held = call('HMGET', KEYS[1], unpack(lanes))

  -- Writes come first: the server may refuse them.
  local done, ids = {}, {}
  local is_kept
  for i = 1, count do
    local at = first[i]
    local id, how = ARGV[at + 3], ARGV[at + 4]
    local outcome = 1
    if not is_held(held[i], ARGV[at + 2]) then
      outcome = 0
    elseif how ~= 'no' then
      local key = 'vcon:' .. id
      local now, text = pcall('GET', key), ARGV[at + 6]
      if not now then
        outcome = 2
      elseif how == 'is' then
        if now ~= ARGV[at + 5] then outcome = 'changed' end
      elseif now ~= text then
        if is_kept == nil then is_kept = call('EXISTS', 'conserver:progress', 'conserver:foreign') > 0 end
        if now ~= ARGV[at + 5] then
          outcome = 'changed'
        elseif is_kept then
          outcome = 'unusual'
        else
          local left = call('PTTL', key)
          local written
          if left > 0 then
            written = pcall('SET', key, text, 'PX', left)
          else
            written = pcall('SET', key, text)
          end
          if written.err then outcome, answers[i] = 'unwritten', {'unwritten', written.err} end
        end
      end
    end
    answers[i] = answers[i] or {outcome}
    if outcome == 1 or outcome == 2 then
      done[#done + 1] = i
      ids[#ids + 1] = id
    end
  end
  if #done == 0 then return end
  local is_ours = call('GET', KEYS[2]) == ARGV[1]
  -- A full Redis refuses the first write of a script, if it may take memory. This one takes none and changes nothing; and
  -- who may not do it, is not to come so far that a claim must be let go.
  call('HDEL', KEYS[1], '')

  for e = 4 + lists, #KEYS do
    local pushed = pcall('RPUSH', KEYS[e], unpack(ids))
    if type(pushed) == 'table' then
      for _, i in ipairs(done) do answers[i] = {'unusual'} end
      for before = 4 + lists, e - 1 do
        for _ = 1, #ids do pcall('RPOP', KEYS[before]) end
      end
      return
    end
  end

  -- Lets go of the claims of those who get no new one.
  local function release(from)
    local released = {}
    for n = from, #done do released[#released + 1] = lanes[done[n]] end
    if #released > 0 then call('HDEL', KEYS[1], unpack(released)) end
  end

  if not is_ours then return release(1) end

  -- Takes up to so many entries from a list.
  local function pop(list, wanted)
    if wanted > 1 then
      local entries = pcall('LPOP', list, wanted)
      if not entries then return {} end
      if not entries.err then return entries end
      -- Before Redis 6.2 there is no count.
    end
    local entry = pcall('LPOP', list)
    if not entry then return {} end
    return type(entry) == 'table' and entry or {entry}
  end

  -- So many lists are looked at in one command, to pass over those that are empty.
  local taken, from, fault, block, empty = {}, {}, '', 50, 0
  for l = 1, lists do
    local list = KEYS[3 + l]
    if l % block == 1 and l + block - 1 <= lists and #taken < #done
      and pcall('EXISTS', unpack(KEYS, 3 + l, 2 + l + block)) == 0 then
      empty = l + block - 1
    end
    while l > empty and #taken < #done do
      local entries = pop(list, #done - #taken)
      if entries.err then
        if not (entries.err:find('WRONGTYPE') or entries.err:find('NOPERM')) then break end
        fault = list .. ': ' .. entries.err
        break
      end
      if #entries == 0 then break end
      for _, entry in ipairs(entries) do
        taken[#taken + 1] = #entry > MOST_OF_ENTRY and entry:sub(1, MOST_OF_ENTRY + 1) or entry
        from[#taken] = l
      end
    end
  end
  for n = #taken + 1, #done do answers[done[n]][2] = {'', '', '', '', '', '', fault} end
  if #taken == 0 then return release(1) end

  -- What was taken is nowhere until it is claimed: nothing on the way there may end this script.
  -- What may be kept about an entry is rare: one command asks for all of it.
  local keys = {'conserver:deaths', 'conserver:lapses', 'conserver:tries', 'conserver:progress'}
  for n, entry in ipairs(taken) do
    keys[4 + n] = 'context:' .. KEYS[3 + from[n]] .. ':' .. entry
  end
  local is_noted = pcall('EXISTS', unpack(keys)) ~= 0

  local ttl, fields = tonumber(ARGV[2]), {}
  for n, entry in ipairs(taken) do
    local i, list = done[n], KEYS[3 + from[n]]
    local token = new_token(ARGV[first[i] + 1], ARGV[3])
    local record = token .. ',"list":' .. ARGV[4 + from[n]] .. ',"uuid":' .. cjson.encode(entry)
    local answer = {token, list, entry, 'string', '', '', fault}
    if #entry ~= UUID_LENGTH then
      answer[4] = 'look'
    else
      if is_noted then
        local context = pcall('LPOP', keys[4 + n])
        if type(context) == 'string' then
          if #context > MOST_OF_CONTEXT then
            context = context:sub(1, MOST_OF_CONTEXT + 1)
            answer[4] = 'look'
          end
          answer[5] = context
          record = record .. ',"context":' .. cjson.encode(context)
        end
      end
      local left = pcall('PTTL', 'vcon:' .. entry)
      if type(left) == 'number' and left >= 0 and left < ttl * 500 then pcall('EXPIRE', 'vcon:' .. entry, ttl) end
    end
    if is_noted then
      local deaths = pcall('HGET', 'conserver:deaths', entry)
      if type(deaths) == 'string' then
        answer[6] = deaths
      elseif pcall('HEXISTS', 'conserver:lapses', entry) == 1 or pcall('HEXISTS', 'conserver:tries', entry) == 1 then
        answer[6] = '0'
      end
      if pcall('HEXISTS', 'conserver:progress', list .. '\n' .. entry) ~= 0 then answer[4] = 'look' end
    end
    answers[i][2] = answer
    fields[2 * n - 1], fields[2 * n] = lanes[i], record .. '}'
  end
  -- A full Redis does not refuse it, being no first write; the rights of a user may.
  local kept = pcall('HSET', KEYS[1], unpack(fields))
  if type(kept) == 'table' then
    for n = #taken, 1, -1 do
      local answer = answers[done[n]][2]
      if answer[5] ~= '' then pcall('LPUSH', keys[4 + n], answer[5]) end
      call('LPUSH', answer[2], taken[n])
    end
    for _, i in ipairs(done) do answers[i][2] = nil end
    return release(1)
  end
  release(#taken + 1)
end

turn()
-- One element for each lane, '' if no document is to be got for it. Those of former calls are of no use, and none is left
-- where nothing was taken.
local to_get, is_any = {}, false
for i = 1, count do
  local answer = answers[i][2]
  local is_wanted = type(answer) == 'table' and answer[4] == 'string'
  to_get[i] = is_wanted and answer[3] or ''
  is_any = is_any or is_wanted
end
if is_any then
  local length = pcall('LPUSH', KEYS[3], unpack(to_get))
  if type(length) == 'number' and length > 100 then pcall('LTRIM', KEYS[3], 0, count - 1) end
else
  pcall('DEL', KEYS[3])
end
return answers
