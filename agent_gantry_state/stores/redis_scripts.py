"""What a Redis server runs: each message is one script, so that it is one round trip and one atomic step.

A script first reads and checks everything, and only then writes: no error of Redis can leave half of a commit behind. It
judges by the server's clock what is expired; Redis's own expiry only tidies up, at the end of a namespace, a token or a
lease. How a namespace is laid out stands in redis_layout.py.
"""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["COMMIT", "FORGET", "LEASE", "LIST", "LOAD", "RELEASE", "Script"]


class Script:
    """A script and the digest by which a server knows it that has run it before."""

    __slots__ = ("digest", "text")

    def __init__(self, text: str) -> None:
        self.text: Final = text.encode()
        self.digest: Final = hashlib.sha1(self.text).hexdigest().encode()  # noqa: S324 - Redis's choice


# ARGV[1] is empty, or the time by which a test goes.
_NOW = """
local huge = math.huge
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] + t[2] / 1000000
end
local function stamp(time) return struct.pack('>d', time) end
"""

_READ = """
local HEADER = '>Bc8dc8I8dddI4I4BI4'
local HEADER_SIZE, META = 70, 25

local function damaged() error('MEMORY-DAMAGED') end

-- A damaged one is an error, or, if it may be one, says so.
local function header(key, may_be)
  local raw = redis.call('HGET', key, 'h')
  if not raw then return nil end
  local layout = string.byte(raw) or 0
  if layout > 1 then error('MEMORY-LAYOUT ' .. layout) end
  if layout == 0 or #raw < HEADER_SIZE or #raw < HEADER_SIZE + struct.unpack('>I4', raw, HEADER_SIZE - 3) then
    if may_be then return {raw = raw, damaged = true} end
    damaged()
  end
  local s, size, at = {raw = raw}, 0, 0
  layout, s.head, s.touched, s.born, s.last, s.first, s.fixed, s.slide, s.forever, s.timed, s.owned, size, at =
    struct.unpack(HEADER, raw)
  s.owner = string.sub(raw, at, at + size - 1)
  s.address = string.sub(raw, at + size)
  return s
end

local function deadline(value, touched)
  if #value < META then damaged() end
  local kind, time = struct.unpack('>Bd', value, 17)
  if kind == 0 then return huge end
  if kind == 2 then return touched + time end
  return time
end

-- The header and the wanted keys; where keys expire or names are asked for, of every other key what it says of itself.
local function part(key, s, names, wanted)
  local reply = {'h', s.raw}
  if not names and s.timed == 0 then
    for _, field in ipairs(wanted) do
      local value = redis.call('HGET', key, field)
      if value then
        reply[#reply + 1] = field
        reply[#reply + 1] = value
      end
    end
    return reply
  end
  local want = {}
  for _, field in ipairs(wanted) do want[field] = true end
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    if all[i] ~= 'h' then
      reply[#reply + 1] = all[i]
      reply[#reply + 1] = want[all[i]] and all[i + 1] or string.sub(all[i + 1], 1, META)
    end
  end
  return reply
end
"""

# Mostly one namespace is asked for, and is as it was.
_UNCHANGED = """
if #KEYS == 1 and ARGV[3] ~= '' then
  local raw = redis.call('HGET', KEYS[1], 'h')
  if raw and string.sub(raw, 2, 17) == ARGV[3] then return {stamp(now), ARGV[3]} end
end
"""

# KEYS: namespaces. ARGV: time, whether names are asked for, then for each namespace the mark of what the asker has and how
# many keys it wants (-1: all), and those. The answer: the time, then for each namespace false, its mark, or what it holds.
_LOAD = """
local names = ARGV[2] == '1'
local reply, at = {stamp(now)}, 3
for n, key in ipairs(KEYS) do
  local mark, count = ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  local raw = mark ~= '' and redis.call('HGET', key, 'h')
  if raw and string.sub(raw, 2, 17) == mark then
    reply[n + 1] = mark
  elseif count < 0 then
    local all = redis.call('HGETALL', key)
    reply[n + 1] = #all > 0 and all
  else
    local wanted = {}
    for i = 1, count do wanted[i] = 'k' .. ARGV[at + i - 1] end
    at = at + count
    local s = header(key)
    reply[n + 1] = s and part(key, s, names, wanted) or false
  end
end
return reply
"""

# KEYS: for each change its namespace, its index, and if there is a token the key of that. ARGV: time, version, whether there
# is a token, how long it is kept, then the changes (redis_layout.written). The answer: the version and whether every head
# was the one loaded, or, if something has moved, an array like that of a load.

# Mostly one namespace is as it was loaded, nothing in it expires, and keys are only written. Then the time makes no
# difference, for Redis lets a token go by itself, and nobody has sent this before: it would have changed the head.
_USUAL = """
local version, stride = ARGV[2], ARGV[3] == '1' and 3 or 2
if #KEYS == stride and ARGV[5] ~= '' and ARGV[8] == '' and ARGV[12] == '0' and not string.find(ARGV[9], 't', 1, true) then
  local key, at, puts = KEYS[1], 14 + 2 * ARGV[11], tonumber(ARGV[13])
  local raw = redis.call('HGET', key, 'h')
  if raw and string.sub(raw, 1, 9) == '\\1' .. ARGV[5] and #raw >= 70 and puts > 0 and puts < 2000 then
    local timed, _, size = struct.unpack('>I4BI4', raw, 62)
    local words, new, last, usual = {}, 0, nil, timed == 0 and #raw >= 70 + size
    for i = 1, puts do
      local field, how, place, position = 'k' .. ARGV[at], string.byte(ARGV[at + 1], 1, 2)
      local value = redis.call('HGET', key, field)
      if not usual or (how ~= 107 and how ~= 110) or (value and #value < 25) then
        usual = false
        break
      end
      if value and place ~= 108 then
        position = string.sub(value, 9, 16)
      else
        last = (last or struct.unpack('>I8', raw, 26)) + 1
        position = struct.pack('>I8', last)
        if not value then new = new + 1 end
      end
      words[2 * i - 1] = field
      words[2 * i] = version .. position .. '\\0\\0\\0\\0\\0\\0\\0\\0\\0' .. ARGV[at + 2]
      at = at + 3
    end
    if usual then
      local rest = string.sub(raw, 10)
      if last then
        rest = string.sub(raw, 10, 25) .. struct.pack('>I8', last) .. string.sub(raw, 34, 57)
          .. struct.pack('>I4', struct.unpack('>I4', raw, 58) + new) .. string.sub(raw, 62)
      end
      words[2 * puts + 1] = 'h'
      words[2 * puts + 2] = '\\1' .. version .. rest
      if stride == 3 then
        local kept = tonumber(ARGV[4])
        local till = ARGV[1] == '' and math.huge or ARGV[1] + kept
        redis.call('SET', KEYS[3], struct.pack('>d', till), 'PX', math.ceil(kept * 1000))
      end
      redis.call('HSET', key, unpack(words))
      return version .. '1'
    end
  end
end
"""

_SENT_BEFORE = """
local kept = tonumber(ARGV[4])
if stride == 3 then
  for k = 3, #KEYS, 3 do
    local before = redis.call('GET', KEYS[k])
    if before and struct.unpack('>d', before) > now then return version .. '0' end
  end
end
"""

_COMMIT = """
-- What is expired, and the counts without it.
local function expired(key, s)
  local gone, all = {}, redis.call('HGETALL', key)
  s.first, s.forever, s.timed = huge, 0, 0
  for i = 1, #all, 2 do
    local field = all[i]
    if field ~= 'h' then
      local due = deadline(all[i + 1], s.touched)
      if due <= now then
        gone[#gone + 1] = field
        gone[field] = true
      elseif due == huge then
        s.forever = s.forever + 1
      else
        s.timed = s.timed + 1
        s.first = math.min(s.first, due)
      end
    end
  end
  return gone
end

local changes, at, moved, in_place = {}, 5, false, '1'
for n = 1, #KEYS / stride do
  local c = {key = KEYS[(n - 1) * stride + 1], index = KEYS[(n - 1) * stride + 2], old = {}, deletes = {}, puts = {}}
  local head, born, seen, owner, flags = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  c.touch, c.whole = string.find(flags, 't', 1, true), string.find(flags, 'w', 1, true)
  c.owner, c.address = owner, ARGV[at + 5]
  local checks, deletes, puts = tonumber(ARGV[at + 6]), tonumber(ARGV[at + 7]), tonumber(ARGV[at + 8])
  at = at + 9
  local s = header(c.key)
  c.expiring = s and s.forever == 0 and s.timed > 0
  if s and s.first <= now then
    c.gone = expired(c.key, s)
    if #c.gone > 0 and s.forever + s.timed == 0 then
      c.dead, s = true, nil
    end
  end
  c.s = s
  local gone = s and c.gone or {}
  c.checks = {}
  local same = (s and s.head or '') == head
  local differs = false
  if not same then
    in_place = '0'
    differs = c.whole or seen ~= (s and s.owned == 1 and '=' .. s.owner or '')
      or (head ~= '' and born ~= (s and s.born or ''))
  end
  for i = 1, checks do
    local field, want = 'k' .. ARGV[at], ARGV[at + 1]
    at = at + 2
    c.checks[i] = field
    if not same and not differs then
      local value = s and redis.call('HGET', c.key, field)
      c.old[field] = value
      local has = value and string.sub(value, 1, 8) or ''
      if has ~= want and not (gone[field] and want == '') then differs = true end
    end
  end
  moved = moved or differs
  for i = 1, deletes do c.deletes[i] = 'k' .. ARGV[at + i - 1] end
  at = at + deletes
  for i = 1, puts do
    c.puts[i] = {'k' .. ARGV[at], ARGV[at + 1], ARGV[at + 2]}
    at = at + 3
  end
  c.writes = deletes + puts > 0 or owner ~= ''
  changes[n] = c
end
if moved then
  local reply = {stamp(now)}
  for n, c in ipairs(changes) do
    -- What has expired the asker finds out by itself, and then has to see what has not.
    reply[n + 1] = c.s and part(c.key, c.s, c.whole or (c.gone and #c.gone > 0), c.checks) or false
  end
  return reply
end

-- All that is read is read before anything is written, for it may be damaged.
local stale, new = {}, {}
for _, c in ipairs(changes) do
  local gone = c.s and c.gone or {}
  local function read(field)
    if not c.s or gone[field] then return end
    local value = c.old[field]
    if value == nil then value = redis.call('HGET', c.key, field) end
    if value and #value < META then damaged() end
    c.old[field] = value and string.sub(value, 1, META)
  end
  for _, field in ipairs(c.deletes) do read(field) end
  for _, put in ipairs(c.puts) do read(put[1]) end
  if c.writes and not c.s then
    new[c.key] = true
    -- What Redis lets go by itself stays in the index: whoever comes new looks behind himself.
    local digest = string.sub(c.key, -64)
    local behind = redis.pcall('ZRANGEBYLEX', c.index, '(' .. digest, '+', 'LIMIT', 0, 2)
    if #behind < 2 then
      -- Behind the last one comes the first.
      for _, other in ipairs(redis.pcall('ZRANGEBYLEX', c.index, '-', '+', 'LIMIT', 0, 2 - #behind)) do
        behind[#behind + 1] = other
      end
    end
    for _, other in ipairs(behind) do
      local key = string.sub(c.key, 1, -65) .. other
      if redis.pcall('HGET', key, 'h') == false then stale[#stale + 1] = {c.index, key, other} end
    end
  end
end

-- Unpacking has a limit.
local function in_parts(command, key, words)
  for i = 1, #words, 4000 do redis.call(command, key, unpack(words, i, math.min(i + 3999, #words))) end
end

-- What may meet a key of somebody else comes first.
for n, c in ipairs(changes) do
  if c.writes and not c.s then redis.call('ZADD', c.index, 0, string.sub(c.key, -64)) end
end
for _, each in ipairs(stale) do
  if not new[each[2]] then redis.pcall('ZREM', each[1], each[3]) end
end
for n, c in ipairs(changes) do
  if c.writes and stride == 3 then
    redis.call('SET', KEYS[n * 3], stamp(now + kept), 'PX', math.ceil(kept * 1000))
  end
end

local function counted(s, kind, by)
  if kind == 0 then s.forever = s.forever + by else s.timed = s.timed + by end
end

for n, c in ipairs(changes) do
  local key, s = c.key, c.s
  if c.writes or (c.touch and s) then
    if c.dead then redis.call('DEL', key) end
    if not s then
      s = {born = version, last = 0, touched = 0, first = huge, fixed = 0, slide = 0, forever = 0, timed = 0, owned = 0,
        owner = '', address = c.address}
      c.gone = nil
    end
    local gone = c.gone or {}
    if #gone > 0 then in_parts('HDEL', key, gone) end
    if c.touch then
      -- A clock that was set back: what slides ends earlier than thought.
      if now < s.touched then s.first = math.min(s.first, now) end
      s.touched = now
    end
    local function there(field)
      if not c.s or gone[field] then return nil end
      return c.old[field]
    end
    local removed, words = {}, {}
    for _, field in ipairs(c.deletes) do
      local value = there(field)
      if value then
        counted(s, string.byte(value, 17), -1)
        removed[#removed + 1] = field
      end
    end
    if #removed > 0 then in_parts('HDEL', key, removed) end
    for _, put in ipairs(c.puts) do
      local field, terms = put[1], put[2]
      local value, how = there(field), string.sub(terms, 1, 1)
      local position, kind, time = 0, 0, 0
      if value then
        position, kind, time = struct.unpack('>I8Bd', value, 9)
        counted(s, kind, -1)
      end
      if not value or string.sub(terms, 2, 2) == 'l' then
        s.last = s.last + 1
        position = s.last
      end
      if how == 'n' then
        kind, time = 0, 0
      elseif how == 'f' then
        kind, time = 1, now + tonumber(string.sub(terms, 3))
      elseif how == 's' then
        kind, time = 2, tonumber(string.sub(terms, 3))
      end
      counted(s, kind, 1)
      if kind == 1 then
        s.fixed, s.first = math.max(s.fixed, time), math.min(s.first, time)
      elseif kind == 2 then
        s.slide, s.first = math.max(s.slide, time), math.min(s.first, s.touched + time)
      end
      words[#words + 1] = field
      words[#words + 1] = struct.pack('>c8I8Bd', version, position, kind, time) .. put[3]
    end
    if s.timed == 0 then s.first, s.fixed, s.slide = huge, 0, 0 end
    if c.writes then s.head = version end
    if c.owner ~= '' then s.owned, s.owner = 1, string.sub(c.owner, 2) end
    words[#words + 1] = 'h'
    words[#words + 1] = struct.pack(HEADER, 1, s.head, s.touched, s.born, s.last, s.first, s.fixed, s.slide, s.forever,
      s.timed, s.owned, #s.owner) .. s.owner .. s.address
    in_parts('HSET', key, words)
    local left = huge
    if s.forever == 0 and s.timed > 0 then
      left = math.ceil((math.max(s.fixed, s.touched + s.slide) - now) * 1000)
    end
    -- A time that Redis could not reckon with is none.
    if left < 1e13 then
      redis.call('PEXPIRE', key, math.max(left, 1))
    elseif c.expiring then
      redis.call('PERSIST', key)
    end
  end
end
return version .. in_place
"""

# KEYS: for each namespace its own and its index.
_FORGET = """
for k = 1, #KEYS, 2 do
  redis.call('DEL', KEYS[k])
  redis.call('ZREM', KEYS[k + 1], string.sub(KEYS[k], -64))
end
return 1
"""

# KEYS: indexes, in order. ARGV: time, the digest to begin after, how many are wanted, how many may be looked at, and the
# app, scope and owner asked for, each behind a '=', or empty. The answer: the digest that was looked at last, or false if
# none is left, then a digest and a header for each found.
_LIST = """
local after, wanted, budget = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local function asked(n) return ARGV[n] ~= '' and string.sub(ARGV[n], 2) end
local app, scope, owner = asked(5), asked(6), asked(7)
local reply, found = {false}, 0

local function is_asked_for(s)
  -- Whoever asks finds out that it is damaged.
  if s.damaged or #s.address < 8 then return true end
  local size = struct.unpack('>I8', s.address)
  if app and app ~= string.sub(s.address, 9, 8 + size) then return false end
  local rest = string.sub(s.address, 9 + size)
  if #rest < 8 then return true end
  size = struct.unpack('>I8', rest)
  if scope and scope ~= string.sub(rest, 9, 8 + size) then return false end
  return not owner or (s.owned == 1 and owner == s.owner)
end

local function is_over(key, s)
  if s.damaged or s.forever > 0 or s.timed == 0 or s.first > now then return false end
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    if all[i] ~= 'h' and (#all[i + 1] < META or deadline(all[i + 1], s.touched) > now) then return false end
  end
  return true
end

for _, index in ipairs(KEYS) do
  local base = string.sub(index, 1, -6)
  while true do
    local digests = redis.call('ZRANGEBYLEX', index, '(' .. after, '+', 'LIMIT', 0, 64)
    if #digests == 0 then break end
    for _, digest in ipairs(digests) do
      if found >= wanted or budget <= 0 then
        reply[1] = after
        return reply
      end
      after, budget = digest, budget - 1
      local key = base .. digest
      local s = header(key, true)
      if s and is_over(key, s) then
        redis.call('DEL', key)
        s = nil
      end
      if not s then
        redis.call('ZREM', index, digest)
      elseif is_asked_for(s) then
        found = found + 1
        reply[#reply + 1] = digest
        reply[#reply + 1] = s.raw
      end
    end
  end
end
return reply
"""

# KEYS: the lease. ARGV: time, who asks, for how long. The answer: false if it is granted, else what the holder has left.
_LEASE = """
local ttl, held = tonumber(ARGV[3]), redis.call('GET', KEYS[1])
if held then
  local left = struct.unpack('>d', held) - now
  if left > 0 and string.sub(held, 9) ~= ARGV[2] then return stamp(left) end
end
redis.call('SET', KEYS[1], stamp(now + ttl) .. ARGV[2], 'PX', math.max(math.ceil(ttl * 1000), 1))
return false
"""

# KEYS: the lease. ARGV: time, who gives it back.
_RELEASE = """
local held = redis.call('GET', KEYS[1])
if held and string.sub(held, 9) == ARGV[2] then redis.call('DEL', KEYS[1]) end
return 1
"""

LOAD: Final = Script(_NOW + _UNCHANGED + _READ + _LOAD)
COMMIT: Final = Script(_USUAL + _NOW + _SENT_BEFORE + _READ + _COMMIT)
FORGET: Final = Script(_FORGET)
LIST: Final = Script(_NOW + _READ + _LIST)
LEASE: Final = Script(_NOW + _LEASE)
RELEASE: Final = Script(_RELEASE)
