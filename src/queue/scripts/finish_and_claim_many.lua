-- Finishes the vCons of several lanes of a worker, and claims the next entry for each. Does only what is usual: for
-- anything unusual it does nothing and tells the lane, which calls `finish` and `claim`.
-- KEYS: 1 the worker's claims hash, 2 the lease on the instance's name, 3 the list of the entries that the worker has
--       claimed, then the ingress lists, then the egress lists.
-- ARGV: 1 the record of our lease, 2 the time to live that a document gets once less than half of it is left, 3 that of
--       contexts, 4 the number of ingress lists, then for each what stands between the token and the entry in the record of
--       a claim, then for each lane: lane, the record of its claim, up to the context if one came with it, the token of its
--       next one, the UUID to announce, and for its document 'no', or 'is' with the text that must stand there, or 'swap'
--       with the length of that, the key that holds it, and the key that holds the text to write; or, if the user may not
--       compare like that, 'put' with both texts; then, if a context goes with the UUID, 'context' and that.
-- Returns two values for each lane. The first is 1 if the vCon is finished, 2 if it is and its document had been
-- deleted meanwhile, 0 if the lane no longer holds the claim, 'changed', 'unwritten', or 'unusual'. With 'unwritten',
-- the second is the error; with 'unusual', that of a refused way to compare. With 1 and 2, it is the entry claimed from
-- the first list, '' if all lists are empty, {list, entry, context, kind, fault, deaths} if there is more to tell, or nil
-- if the lane has to ask for a claim alone. list is the number of a list, 0 if all are empty. kind is 'look' if the lane
-- has to ask for this claim again, or 'string'.
-- Documents are not returned here: `SORT` gets them for the first entries of the list of claimed entries, one for each
-- lane, the last lane first. That costs the server less than half of what a script costs that returns them.
--
-- Most of what a vCon costs the server is spent here, and much of that is the garbage collection of what the script
-- allocates. So nothing is a function, which each call would create anew, no long text is composed twice, and tables
-- have room for four lanes from the start, so that they need not grow.

-- The lane checks whether an entry is a UUID: a pattern would cost more than everything else done for an entry here.
local UUID_LENGTH = 36
local call, pcall, unpack, KEYS, ARGV = redis.call, redis.pcall, unpack, KEYS, ARGV
local lists = tonumber(ARGV[4])

-- What goes through a script is copied and hashed, byte by byte: for a document, that costs more than all else that is
-- done for its vCon. So none does: the lanes have put theirs under keys, which are compared, renamed and removed here.
local compared = {nil, nil, nil, nil}
-- `first` is the index at which the arguments of each lane begin.
local lanes, first, count = {nil, nil, nil, nil}, {nil, nil, nil, nil}, 0
local contexts
local at = 5 + lists
while ARGV[at] do
  count = count + 1
  lanes[count], first[count] = ARGV[at], at
  local how = ARGV[at + 4]
  if how == 'swap' then
    compared[#compared + 1] = ARGV[at + 6]
    compared[#compared + 1] = ARGV[at + 7]
  end
  at = at + (how == 'swap' and 8 or how == 'no' and 5 or how == 'is' and 6 or 7)
  if ARGV[at] == 'context' then
    contexts = contexts or {}
    contexts[count] = ARGV[at + 1]
    at = at + 2
  end
end
-- `HMGET` takes twice the time of `HGET`.
local held = count == 1 and {call('HGET', KEYS[1], lanes[1])} or call('HMGET', KEYS[1], unpack(lanes))

-- Finishes. Writes of documents come first: the server may refuse them.
local answers = {nil, nil, nil, nil, nil, nil, nil, nil}
local done, ids, finished = {nil, nil, nil, nil}, {nil, nil, nil, nil}, 0
local is_kept
for i = 1, count do
  local at = first[i]
  local id, how, record = ARGV[at + 3], ARGV[at + 4], ARGV[at + 1]
  local outcome, refusal = 1, false
  -- A record that ends in a colon, the context would follow.
  if held[i] ~= record and not (held[i] and record:byte(-1) == 58 and held[i]:sub(1, #record) == record) then
    -- The lane still holds its claim if the record begins with its token.
    local token = record:match('^{"since":[%d.]+,"by":"[^"]*"') or ''
    outcome = held[i] and held[i]:sub(1, #token) == token and 'unusual' or 0
  elseif how == 'swap' then
    local key, size, base, draft = 'vcon:' .. id, tonumber(ARGV[at + 5]), ARGV[at + 6], ARGV[at + 7]
    -- If another text stands there, that may be the new one, from an earlier try.
    outcome = 'unusual'
    local now, reply = pcall('STRLEN', key), false
    if now == 0 then
      if pcall('EXISTS', key) == 0 then outcome = 2 end
    elseif now == size then
      if is_kept == nil then is_kept = pcall('EXISTS', 'conserver:progress', 'conserver:foreign') ~= 0 end
      -- Bits that are the same in both texts become 0. If all are, there is no 1.
      if not is_kept then reply = pcall('BITOP', 'XOR', base, key, base) end
      if reply == size then reply = pcall('BITPOS', base, 1) end
      if reply == -1 then
        -- The draft has a time to live of its own. Each of these returns 0 if it is gone.
        reply = pcall('PTTL', key)
        if reply == -1 then
          reply = pcall('PERSIST', draft)
        elseif type(reply) == 'number' then
          reply = pcall('PEXPIRE', draft, math.max(reply, 1))
        end
        if reply == 1 then reply = pcall('RENAME', draft, key) end
        if type(reply) == 'table' and reply.ok then outcome = 1 end
      end
    end
    if type(reply) == 'table' and reply.err then
      refusal = reply.err
      if refusal:find('OOM') then outcome = 'unwritten' end
    end
  elseif how ~= 'no' then
    local key = 'vcon:' .. id
    local now, text = pcall('GET', key), ARGV[at + 6]
    if not now then
      outcome = 2
    elseif how == 'is' then
      if now ~= ARGV[at + 5] then outcome = 'changed' end
    elseif now ~= text then
      if is_kept == nil then is_kept = pcall('EXISTS', 'conserver:progress', 'conserver:foreign') ~= 0 end
      if now ~= ARGV[at + 5] then
        outcome = 'changed'
      elseif is_kept then
        outcome = 'unusual'
      else
        local left = call('PTTL', key)
        local written
        if left >= 0 then
          written = pcall('SET', key, text, 'PX', math.max(left, 1))
        else
          written = pcall('SET', key, text)
        end
        if written.err then outcome, refusal = 'unwritten', written.err end
      end
    end
  end
  answers[2 * i - 1], answers[2 * i] = outcome, refusal
  if outcome == 1 or outcome == 2 then
    finished = finished + 1
    done[finished], ids[finished] = i, id
  end
end

if #compared > 0 then pcall('DEL', unpack(compared)) end

local wanted = 0
if finished > 0 then
  if call('GET', KEYS[2]) == ARGV[1] then wanted = finished end
  -- A full Redis refuses the first write of a script if it may take memory. This one takes none and changes nothing.
  -- And a user without the right to it must fail here, before claims have to be ended.
  call('HDEL', KEYS[1], '')
  for e = 4 + lists, #KEYS do
    if type(pcall('RPUSH', KEYS[e], unpack(ids))) == 'table' then
      for before = 4 + lists, e - 1 do
        for _ = 1, finished do pcall('RPOP', KEYS[before]) end
      end
      for n = 1, finished do answers[2 * done[n] - 1] = 'unusual' end
      finished, wanted = 0, 0
      break
    end
  end
  for n = 1, contexts and finished or 0 do
    local context = contexts[done[n]]
    for e = 4 + lists, context and #KEYS or 0 do
      local key = 'context:' .. KEYS[e] .. ':' .. ids[n]
      pcall('RPUSH', key, context)
      pcall('EXPIRE', key, ARGV[3])
    end
  end
end

-- Takes entries. One command looks at `block` lists at once, to skip empty ones.
local taken, from, got, fault, block, empty = {nil, nil, nil, nil}, {nil, nil, nil, nil}, 0, '', 50, 0
for l = 1, lists do
  if got == wanted then break end
  local list = KEYS[3 + l]
  if l % block == 1 and l + block - 1 <= lists and pcall('EXISTS', unpack(KEYS, 3 + l, 2 + l + block)) == 0 then
    empty = l + block - 1
  end
  while l > empty and got < wanted do
    local most = wanted - got
    local entries = most > 1 and pcall('LPOP', list, most)
    -- LPOP takes no count before Redis 6.2.
    if most == 1 or (entries and entries.err) then entries = pcall('LPOP', list) end
    if type(entries) == 'string' then entries = {entries} end
    if entries and entries.err and (entries.err:find('WRONGTYPE') or entries.err:find('NOPERM')) then
      fault = list .. ': ' .. entries.err
    end
    if not entries or #entries == 0 then break end
    for n = 1, #entries do
      local entry = entries[n]
      got = got + 1
      taken[got], from[got] = #entry > MOST_OF_ENTRY and entry:sub(1, MOST_OF_ENTRY + 1) or entry, l
    end
  end
end
for n = got + 1, wanted do answers[2 * done[n]] = fault == '' and '' or {0, '', '', '', fault, ''} end

-- Claims them. They are nowhere until then: no error may end this script before that.
local documents = 0
if got > 0 then
  -- Redis rarely holds anything about an entry, so one command asks for all of it; often that is a context alone.
  local notes = {'conserver:deaths', 'conserver:lapses', 'conserver:tries', 'conserver:progress', nil, nil, nil, nil}
  for n = 1, got do notes[4 + n] = 'context:' .. KEYS[3 + from[n]] .. ':' .. taken[n] end
  local has_context = pcall('EXISTS', unpack(notes)) ~= 0
  local is_noted = has_context and pcall('EXISTS', unpack(notes, 1, 4)) ~= 0
  local fields = {nil, nil, nil, nil, nil, nil, nil, nil}
  for n = 1, got do
    local i, entry, list = done[n], taken[n], from[n]
    local kind, context, deaths, rest = 'string', '', '', '}'
    if #entry ~= UUID_LENGTH then
      kind = 'look'
    else
      if has_context then
        local popped = pcall('LPOP', notes[4 + n])
        if type(popped) == 'string' then
          if #popped > MOST_OF_CONTEXT then
            popped = popped:sub(1, MOST_OF_CONTEXT + 1)
            kind = 'look'
          end
          context = popped
          rest = ',"context":' .. cjson.encode(context) .. '}'
        end
      end
      local left = pcall('PTTL', 'vcon:' .. entry)
      if left ~= -1 and type(left) == 'number' and left >= 0 and left < tonumber(ARGV[2]) * 500 then
        pcall('EXPIRE', 'vcon:' .. entry, ARGV[2])
      end
    end
    if is_noted then
      local died = pcall('HGET', 'conserver:deaths', entry)
      if type(died) == 'string' then
        deaths = died
      elseif pcall('HEXISTS', 'conserver:lapses', entry) == 1 or pcall('HEXISTS', 'conserver:tries', entry) == 1 then
        deaths = '0'
      end
      if pcall('HEXISTS', 'conserver:progress', KEYS[3 + list] .. '\n' .. entry) ~= 0 then kind = 'look' end
    end
    if kind == 'string' then documents = documents + 1 end
    if list == 1 and kind == 'string' and context == '' and not is_noted and fault == '' then
      answers[2 * i] = entry
    else
      answers[2 * i] = {list, entry, context, kind, fault, deaths}
    end
    fields[2 * n - 1], fields[2 * n] = lanes[i], ARGV[first[i] + 2] .. ARGV[4 + list] .. cjson.encode(entry) .. rest
  end
  -- A full Redis does not refuse it, as it is not the first write. A missing right may.
  if type(pcall('HSET', KEYS[1], unpack(fields))) == 'table' then
    for n = got, 1, -1 do
      local answer = answers[2 * done[n]]
      if type(answer) == 'table' and answer[3] ~= '' then pcall('LPUSH', notes[4 + n], answer[3]) end
      call('LPUSH', KEYS[3 + from[n]], taken[n])
    end
    for n = 1, finished do answers[2 * done[n]] = false end
    got, documents = 0, 0
  end
end

-- Ends the claims of the lanes that get no new one.
if finished > got then
  local released = {}
  for n = got + 1, finished do released[n - got] = lanes[done[n]] end
  call('HDEL', KEYS[1], unpack(released))
end

-- One element for each lane, '' if `SORT` has no document to get for it. The elements of earlier calls are useless, so
-- the list is trimmed now and then, and deleted if nothing was taken.
if documents > 0 then
  local to_get = taken
  if documents < count then
    to_get = {}
    for i = 1, count do
      local outcome, next = answers[2 * i - 1], answers[2 * i]
      if type(next) == 'table' then next = next[4] == 'string' and next[2] end
      to_get[i] = (outcome == 1 or outcome == 2) and next or ''
    end
  end
  local length = pcall('LPUSH', KEYS[3], unpack(to_get))
  if type(length) == 'number' and length > 100 then pcall('LTRIM', KEYS[3], 0, count - 1) end
else
  pcall('DEL', KEYS[3])
end
return answers
