-- Claims the next entry for one lane. Goes after `pop_ingress` or `pop_backlog`, whose `pop` takes an entry from one
-- list, and before the scripts that claim.
-- KEYS: 1 the worker's claims hash, 2 the lease on the instance's name, 3 the set of instances, 4 the instance's set
--       of workers, then the lists in order.
-- ARGV: 1 lane, 2 how many bytes a plain document may have to be returned here, 3 the record of our lease, 4 its time to
--       live, 5 the instance, 6 the worker, 7 the time to live that a document gets once less than half of it is left,
--       8 the mark of our lease, 9 the time of the request, 10 the number of lists, then the name of each list as JSON.
-- Returns {token, list, entry, context, kind, document, fault, deaths, progress}. token is '' if all lists are empty;
-- deaths is '' if Redis holds nothing about the entry. If another daemon holds the name, kind is 'not-ours' and document
-- its record.
-- If the lane still holds a claim, returns that claim again: its first reply, or its finish, was lost. If another daemon
-- made that claim while it held the name, kind is 'left-behind'.

local UUID = '^%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$'

-- Whether an error is about a key, or the rights to it, and not about the server.
local function is_of_the_key(err)
  return err:find('WRONGTYPE') or err:find('NOPERM') or err:find('user executing the script')
end

local function json_document(key)
  local size = redis.pcall('JSON.DEBUG', 'MEMORY', key)
  if type(size) ~= 'number' or size > MOST_OF_JSON then return 'json-large', '' end
  local text = redis.pcall('JSON.GET', key)
  if type(text) == 'table' then
    -- A missing right is no fault of the document: the lane waits until it has the right.
    local err = text.err or ''
    if err:find('NOPERM') or err:find('user executing the script') then error(text) end
    return 'unreadable', err
  end
  return 'ReJSON-RL', text or ''
end

local function document(entry)
  if #entry > MOST_OF_ENTRY then return 'entry-too-long', '' end
  if not entry:find(UUID) then return 'not-a-uuid', '' end
  local key = 'vcon:' .. entry
  keep_alive(key, ARGV[7])
  local size = redis.pcall('STRLEN', key)
  if type(size) == 'number' then
    if size > tonumber(ARGV[2]) then return 'string-large', '' end
    local text = redis.call('GET', key)
    if text then return 'string', text end
    return 'none', ''
  end
  local kind = redis.call('TYPE', key).ok
  if kind == 'ReJSON-RL' then return json_document(key) end
  return kind, ''
end

-- What Redis holds about an entry besides its claim: rarely anything, so one command asks for all of it.
local function notes(list, entry)
  if redis.call('EXISTS', 'conserver:deaths', 'conserver:lapses', 'conserver:tries', 'conserver:progress') == 0 then
    return '', ''
  end
  local deaths, field = redis.pcall('HGET', 'conserver:deaths', entry), list .. '\n' .. entry
  if type(deaths) == 'string' then return deaths, kept_progress(field) end
  local is_noted = redis.pcall('HEXISTS', 'conserver:lapses', entry) == 1
    or redis.pcall('HEXISTS', 'conserver:tries', entry) == 1
    or redis.pcall('HEXISTS', 'conserver:progress', field) == 1
  return is_noted and '0' or '', kept_progress(field)
end

local function handed(token, list, entry, context, fault)
  local kind, text = document(entry)
  if #context > MOST_OF_CONTEXT then kind, text = 'context-too-long', '' end
  local deaths, progress = notes(list, entry)
  return {token, list, entry, context, kind, text, fault, deaths, progress}
end

-- The claim that the lane holds already, if any.
local function held_claim()
  local held = redis.call('HGET', KEYS[1], ARGV[1])
  if not held then return nil end
  local claim = read_record(held)
  if not claim then
    -- A full Redis refuses the first write of a script if it may take memory. This one takes none.
    redis.call('HDEL', KEYS[1], '')
    redis.call('RPUSH', 'conserver:unreadable', held)
    redis.call('HDEL', KEYS[1], ARGV[1])
    return nil
  end
  if claim.by ~= '' and claim.by ~= ARGV[8] then
    return {token_of(held), claim.list, claim.uuid, claim.context, 'left-behind', '', '', '', ''}
  end
  return handed(token_of(held), claim.list, claim.uuid, claim.context, '')
end

-- `is_known` says that the lane held a claim until this very script, so its worker is in the set of workers.
local function claim(is_known)
  local holder = redis.call('GET', KEYS[2])
  if not holder then
    -- Nothing that takes memory comes first, so that the lease can be taken on a full server.
    redis.call('DEL', KEYS[2])
    redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[4])
    redis.call('SADD', KEYS[3], ARGV[5])
    is_known = false
  elseif holder ~= ARGV[3] then
    return {'', '', '', '', 'not-ours', holder:sub(1, 4096), '', '', ''}
  end
  if not is_known then
    local held = held_claim()
    if held then return held end
  end
  local fault, lists = '', tonumber(ARGV[10])
  for i = 1, lists do
    local list = KEYS[4 + i]
    local entry = pop(list)
    if type(entry) == 'table' then
      -- An error about one list does not keep the lane from the others; an error of the server does.
      local err = entry.err or ''
      if not is_of_the_key(err) then return entry end
      fault = list .. ': ' .. err
    elseif entry then
      entry = entry:sub(1, MOST_OF_ENTRY + 1)
      local context, encoded = '', '"' .. entry .. '"'
      if entry:find(UUID) then
        local popped = redis.pcall('LPOP', 'context:' .. list .. ':' .. entry)
        if type(popped) == 'string' then context = popped:sub(1, MOST_OF_CONTEXT + 1) end
      else
        encoded = cjson.encode(entry)
      end
      local token = new_token(ARGV[9], ARGV[8])
      local record = token .. ',"list":' .. ARGV[10 + i] .. ',"uuid":' .. encoded
      if context ~= '' then record = record .. ',"context":' .. cjson.encode(context) end
      record = record .. '}'
      -- A full Redis does not refuse it, as it is the second write. A missing right may.
      local kept = redis.pcall('HSET', KEYS[1], ARGV[1], record)
      if type(kept) == 'table' then
        if context ~= '' then redis.pcall('LPUSH', 'context:' .. list .. ':' .. entry, context) end
        redis.call('LPUSH', list, entry)
        return kept
      end
      if not is_known then redis.pcall('SADD', KEYS[4], ARGV[6]) end
      return handed(token, list, entry, context, fault)
    end
  end
  return {'', '', '', '', '', '', fault, '', ''}
end

