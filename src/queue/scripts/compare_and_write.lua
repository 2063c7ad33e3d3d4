-- Compares and writes a document under its key, in the form in which it is stored there. Goes after `direct_writes` and
-- `progress`, and before the scripts that need it.

-- The text under a key; or nil and true if it is too large for the script interpreter, or its size is unknown.
local function stands(key, how)
  local is_json = how == 'json'
  local size = is_json and redis.pcall('JSON.DEBUG', 'MEMORY', key) or redis.pcall('STRLEN', key)
  if type(size) == 'table' then
    -- A key of another type counts as another document.
    if redis.call('TYPE', key).ok ~= (is_json and 'ReJSON-RL' or 'string') then return size end
    return nil, true
  end
  if size > LONGEST then return nil, true end
  return redis.pcall(is_json and 'JSON.GET' or 'GET', key)
end

-- Writes a document and keeps its time to live. The server may refuse the document, so this comes first.
local function put(key, how, text)
  if how == 'json' then return redis.pcall('JSON.SET', key, '$', text) end
  local left = redis.call('PTTL', key)
  if how == 'draft' then
    redis.call('RENAME', text, key)
    if left > 0 then redis.call('PEXPIRE', key, left) else redis.call('PERSIST', key) end
    return nil
  end
  if left > 0 then return redis.pcall('SET', key, text, 'PX', left) end
  return redis.pcall('SET', key, text)
end

-- Called before a lane writes a document. Returns a function that records the new text for the links that write this vCon
-- directly at the moment. They do not compare, so they may overwrite it. The list holds first the text that stood there
-- before, after a '='; then each new text, after a '+' if it was made of the text before it in the list, or after a '*' if
-- it was made of another one. While such a link may be at work, each write costs the time and memory of whole copies, even
-- if the document came as a draft: the script has to read what it pushes. If Redis refuses to record a text, because it is
-- too long or Redis is full, the document is written all the same.
local function teller_of_foreign_links(key)
  local uuid = key:sub(6)
  local list = 'conserver:overwritten:' .. uuid
  if redis.call('EXISTS', 'conserver:foreign') == 0 or lanes_at_work('conserver:foreign', uuid, '') == '' then
    return function() end
  end
  local before = text_under(key)
  return function()
    local last, text = redis.pcall('LINDEX', list, -1), text_under(key)
    if type(last) ~= 'string' then
      redis.pcall('RPUSH', list, '=' .. before, '+' .. text)
    else
      redis.pcall('RPUSH', list, (last:sub(2) == before and '+' or '*') .. text)
    end
    redis.pcall('EXPIRE', list, 86400)
  end
end

-- Writes a document, for a lane that serves these lists. Returns why the server refuses it, or nil.
local function write(key, how, text, lists)
  local rebase, tell = progress_of_writer(key, lists), teller_of_foreign_links(key)
  local written = put(key, how, text)
  if type(written) == 'table' and written.err then return written.err end
  rebase()
  tell()
end

