-- A claim is identified by its token: the beginning of its record, which no other claim has. The whole record may be
-- long. Goes before the scripts that need it.

-- The token of a claim that the holder of the lease with this mark requests at this time.
local function new_token(since, mark)
  return '{"since":' .. since .. ',"by":"' .. mark .. '"'
end

-- The token of the claim with this record. It is the whole record if a former version wrote it.
local function token_of(record)
  return record:match('^{"since":[%d.]+,"by":"[^"]*"') or record
end

-- Whether this record of a lane is the claim with this token.
local function is_held(record, token)
  return record and record:sub(1, #token) == token
end

