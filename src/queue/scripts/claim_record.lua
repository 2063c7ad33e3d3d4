-- Reads the record of a claim. Returns nil if no daemon wrote it. Goes before the scripts that need it.
local function read_record(text)
  local ok, claim = pcall(cjson.decode, text)
  if not ok or type(claim) ~= 'table' then return nil end
  if type(claim.list) ~= 'string' or type(claim.uuid) ~= 'string' then return nil end
  local since = tonumber(claim.since)
  return {
    list = claim.list,
    uuid = claim.uuid,
    by = type(claim.by) == 'string' and claim.by or '', -- which daemon claimed it
    context = type(claim.context) == 'string' and claim.context or '',
    since = since and since == since and since or 0, -- NaN cannot be sorted
  }
end

