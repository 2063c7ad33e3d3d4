-- A claim is known by its token: the beginning of its record, which no other claim has. The whole record may be long.
-- Goes before the scripts that need it.

-- What is longer is cut before anything is made of it, to one byte more, so that it is known again.
local MOST_OF_ENTRY, MOST_OF_CONTEXT = 1024, 65536

-- The token of a claim that was asked for at this time by the holder of the lease with this mark.
local function new_token(since, mark)
  return '{"since":' .. since .. ',"by":"' .. mark .. '"'
end

-- The token of a claim by its record; of the record of a former version, all of it.
local function token_of(record)
  return record:match('^{"since":[%d.]+,"by":"[^"]*"') or record
end

-- Whether a lane holds the claim with this token.
local function is_held(record, token)
  return record and record:sub(1, #token) == token
end

