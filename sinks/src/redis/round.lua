-- Writes profiles, and moves the progress of a writer, if the writer is the last one and its progress is as it left it.
--
-- KEYS  progress, profiles...
-- ARGV  start, writer, record before, record after (empty: unchanged), ttl in ms, then for each profile:
--         number of groups, then for each group:
--           mode, rank field, rank, tie field, tie, number of arguments to HDEL, those, number of arguments to HSET, those
--
-- Modes of a group of fields: `set` writes it. `newest` writes it unless the stored group has a greater rank, or the
-- same rank and a greater tie. `drop` deletes it if the stored group has this rank.
--
-- Everything is checked before the first write, since Redis does not undo what a script wrote before it failed. The first
-- write is an HSET, since a server whose memory is full refuses that, and not an HDEL: after a first write it refuses none.

local found = redis.call('HMGET', KEYS[1], 'start', ARGV[2])
if not found[1] then return {'gone'} end
if found[1] ~= ARGV[1] then return {'fenced', found[1]} end
if (found[2] or '') ~= ARGV[3] then return {'changed', found[2] or ''} end
for i = 2, #KEYS do
  local kind = redis.call('TYPE', KEYS[i]).ok
  if kind ~= 'hash' and kind ~= 'none' then return {'type', KEYS[i], kind} end
end

local function applies(key, mode, rank_field, rank, tie_field, tie)
  if mode == 'set' then return true end
  local stored = redis.call('HMGET', key, rank_field, tie_field)
  local stored_rank, new_rank = tonumber(stored[1]), tonumber(rank)
  if mode == 'drop' then return stored_rank == new_rank end
  return not stored_rank or new_rank > stored_rank
    or (new_rank == stored_rank and tie >= (stored[2] or ''))
end

local at = 6
for i = 2, #KEYS do
  local key, groups = KEYS[i], tonumber(ARGV[at])
  at = at + 1
  for _ = 1, groups do
    local deletes = at + 6
    local sets = deletes + tonumber(ARGV[at + 5]) + 1
    local after = sets + tonumber(ARGV[sets - 1])
    if applies(key, ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]) then
      if after > sets then redis.call('HSET', key, unpack(ARGV, sets, after - 1)) end
      if sets - 1 > deletes then redis.call('HDEL', key, unpack(ARGV, deletes, sets - 2)) end
    end
    at = after
  end
  redis.call('PEXPIRE', key, ARGV[5])
end
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], ARGV[2], ARGV[4]) end
return {'done'}
