-- Finishes the vCons of several lanes of a worker, and claims the next entry for each. Does only what is usual: for
-- anything unusual it does nothing and tells the lane, which calls `finish` and `claim`.
-- KEYS: 1 the worker's claims hash, 2 the lease on the instance's name, 3 the list of the entries that the worker has
--       claimed, then the ingress lists, then the egress lists.
-- ARGV: 1 the record of our lease, 2 the time to live that a document gets once less than half of it is left, 3 the mark
--       of our lease, 4 the number of ingress lists, then the name of each as JSON, then for each lane: lane, the time of
--       its request, the token of its claim, the UUID to announce, and for its document 'no', or 'is' with the text that
--       must stand there, or 'put' with that and the text to write.
-- Returns for each lane an array. Its first element is 1 if the vCon is finished, 2 if it is and its document had been
-- deleted meanwhile, 0 if the lane no longer holds the claim, 'changed', 'unwritten' followed by an error, or 'unusual'.
-- After 1 and 2 follows {token, list, entry, kind, context, deaths, fault}, unless the lane has to ask for that again.
-- token is '' if all lists are empty; kind is 'look' if the lane has to ask for the claim alone. Documents are not
-- returned here: if kind is 'string', `SORT` gets them for the first entries of the list of claimed entries, one for each
-- lane, the last lane first. That costs the server less than half of what a script costs that returns them.

-- The lane checks whether an entry is a UUID: a pattern would cost more than everything else done for an entry here.
local UUID_LENGTH = 36
local call, pcall = redis.call, redis.pcall
local lists = tonumber(ARGV[4])
local answers, count = {}, 0

local function turn()
  -- The index at which the arguments of each lane begin.
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
  -- A full Redis refuses the first write of a script if it may take memory. This one takes none and changes nothing. And a
  -- user without the right to it must fail here, before claims have to be ended.
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

  -- Ends the claims of the lanes that get no new one.
  local function release(from)
    local released = {}
    for n = from, #done do released[#released + 1] = lanes[done[n]] end
    if #released > 0 then call('HDEL', KEYS[1], unpack(released)) end
  end

  if not is_ours then return release(1) end

  -- Takes up to `wanted` entries from a list.
  local function pop(list, wanted)
    if wanted > 1 then
      local entries = pcall('LPOP', list, wanted)
      if not entries then return {} end
      if not entries.err then return entries end
      -- LPOP takes no count before Redis 6.2.
    end
    local entry = pcall('LPOP', list)
    if not entry then return {} end
    return type(entry) == 'table' and entry or {entry}
  end

  -- One command looks at `block` lists at once, to skip empty ones.
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

  -- The entries taken are nowhere until they are claimed: no error may end this script before that.
  -- Redis rarely holds anything about an entry, so one command asks for all of it.
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
  -- A full Redis does not refuse it, as it is not the first write. A missing right may.
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
-- One element for each lane, '' if `SORT` has no document to get for it. The elements of earlier calls are useless, so the
-- list is trimmed now and then, and deleted if nothing was taken.
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
