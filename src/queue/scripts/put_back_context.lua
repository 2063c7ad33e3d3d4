-- Restores the context of an entry that goes back to its list. Goes before the scripts that need it.
local function put_back_context(list, entry, context, time)
  if context == '' then return end
  local key = 'context:' .. list .. ':' .. entry
  redis.pcall('LPUSH', key, context)
  redis.pcall('EXPIRE', key, time)
end

