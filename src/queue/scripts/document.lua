-- Reads and writes a document under its key, in the way it is kept there. Goes after `foreign` and `progress`, and
-- before the scripts that need it.

local function stands(key, how)
  if how == 'json' then return redis.pcall('JSON.GET', key) end
  return redis.pcall('GET', key)
end

-- Writes without touching the time to live; the server may refuse the document, so this comes first.
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


-- A link that writes the vCon by itself does not compare: while one is at work, it is told what it may write over. Only
-- then a large document, of which the caller has no text, comes here.
local function tell_foreign_writers(key, text)
  if redis.call('EXISTS', 'conserver:foreign') == 0 then return end
  local uuid = key:sub(6)
  if lanes_at_work('conserver:foreign', uuid, '') == '' then return end
  if not text then
    text = redis.pcall('GET', key)
    if type(text) ~= 'string' then text = redis.pcall('JSON.GET', key) end
  end
  redis.pcall('RPUSH', 'conserver:overwritten:' .. uuid, text)
  redis.pcall('EXPIRE', 'conserver:overwritten:' .. uuid, 86400)
end

-- The same, for a lane that serves these lists. Returns why the server refuses the document, if it does.
local function write(key, how, text, lists)
  local rebase = progress_of_writer(key, lists)
  local written = put(key, how, text)
  if type(written) == 'table' and written.err then return written.err end
  rebase()
  tell_foreign_writers(key, how ~= 'draft' and text)
end

