-- Whether a lane holds the claim with this token: the beginning of its record, which no other claim has. The whole
-- record may be long. Goes before the scripts that need it.
local function is_held(record, token)
  return record and record:sub(1, #token) == token
end

