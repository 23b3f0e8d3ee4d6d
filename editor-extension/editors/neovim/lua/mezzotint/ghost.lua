-- One suggestion at a time: asked for, drawn behind the cursor, taken whole or in part.
local M = {}

local namespace = vim.api.nvim_create_namespace("mezzotint")

-- What is on screen: {buf, client, item, row, col, text, taken}; row and col (0-based, bytes) are
-- the cursor's, text is what is left to accept, taken how much of it has been accepted (UTF-16).
local shown = nil
local cancel = nil -- cancels the request that is under way

local function cursor()
  local row, col = unpack(vim.api.nvim_win_get_cursor(0))
  return row - 1, col
end

function M.is_shown()
  return shown ~= nil
end

function M.hide()
  if shown and vim.api.nvim_buf_is_valid(shown.buf) then
    vim.api.nvim_buf_clear_namespace(shown.buf, namespace, 0, -1)
  end
  shown = nil
  if cancel then
    cancel()
    cancel = nil
  end
end

local function draw()
  vim.api.nvim_buf_clear_namespace(shown.buf, namespace, 0, -1)
  local lines = vim.split(shown.text, "\n")
  local below = vim.tbl_map(function(line) return { { line, "Comment" } } end, vim.list_slice(lines, 2))
  vim.api.nvim_buf_set_extmark(shown.buf, namespace, shown.row, shown.col, {
    virt_text = { { lines[1], "Comment" } },
    virt_text_pos = "inline",
    virt_lines = #below > 0 and below or nil,
  })
end

local function notify(method, extra)
  local params = vim.tbl_extend("error", { item = shown.item }, extra or {})
  shown.client:notify(method, params)
end

local function show(client, buf, item)
  local row, col = cursor()
  local range = item.range
  local line = vim.api.nvim_buf_get_lines(buf, row, row + 1, true)[1]
  local start = vim.str_byteindex(line, client.offset_encoding, range.start.character, false)
  local stop = vim.str_byteindex(line, client.offset_encoding, range["end"].character, false)
  local before = line:sub(start + 1, col)
  -- What is drawn must go on from what stands there, and nothing behind the cursor be replaced.
  if range.start.line ~= row or stop ~= col or not vim.startswith(item.insertText, before) then
    return
  end
  local text = item.insertText:gsub("\r\n", "\n"):sub(#before + 1)
  if text ~= "" then
    shown = { buf = buf, client = client, item = item, row = row, col = col, text = text, taken = 0 }
    draw()
    notify("textDocument/didShowCompletion")
  end
end

--- Ask the server; `explicit`: the user wants a suggestion now.
function M.request(explicit)
  M.hide()
  local buf = vim.api.nvim_get_current_buf()
  local client = vim.lsp.get_clients({ bufnr = buf, name = "mezzotint" })[1]
  if not client then
    return
  end
  local tick = vim.api.nvim_buf_get_changedtick(buf)
  local row, col = cursor()
  local params = vim.lsp.util.make_position_params(0, client.offset_encoding)
  params.context = { triggerKind = explicit and 1 or 2 }
  local ok, id = client:request("textDocument/inlineCompletion", params, function(err, result)
    local now_row, now_col = cursor()
    local is_current = vim.api.nvim_get_current_buf() == buf
      and vim.api.nvim_buf_get_changedtick(buf) == tick
      and now_row == row
      and now_col == col
      and vim.api.nvim_get_mode().mode:sub(1, 1) == "i"
    local items = result and (result.items or result) or {}
    if not err and is_current and items[1] then
      show(client, buf, items[1])
    end
  end, buf)
  cancel = ok and function() client:cancel_request(id) end or nil
end

--- Follow what is typed: into the suggestion it stays, everything else asks anew.
function M.update()
  local row, col = cursor()
  if shown and shown.buf == vim.api.nvim_get_current_buf() and shown.row == row then
    if shown.col == col then
      return -- the event of a change that we made, or of one elsewhere
    end
    local line = vim.api.nvim_buf_get_lines(shown.buf, row, row + 1, true)[1]
    local typed = col > shown.col and line:sub(shown.col + 1, col) or nil
    if typed and vim.startswith(shown.text, typed) and #typed < #shown.text then
      shown.text, shown.col = shown.text:sub(#typed + 1), col
      shown.taken = shown.taken + vim.str_utfindex(typed, "utf-16")
      draw()
      return
    end
  end
  M.request(false)
end

local function insert(text)
  local lines = vim.split(text, "\n")
  local row, col = cursor()
  vim.api.nvim_buf_set_text(0, row, col, row, col, lines)
  local last = #lines == 1 and col + #text or #lines[#lines]
  vim.api.nvim_win_set_cursor(0, { row + #lines, last })
end

local function accept_part(text)
  if #text >= #shown.text then
    return M.accept()
  end
  local accepted = shown
  accepted.text = accepted.text:sub(#text + 1)
  accepted.taken = accepted.taken + vim.str_utfindex(text, "utf-16")
  insert(text)
  shown = accepted
  shown.row, shown.col = cursor()
  draw()
  notify("textDocument/didPartiallyAcceptCompletion", { acceptedLength = shown.taken })
end

function M.accept()
  if not shown then
    return
  end
  local client, command, text = shown.client, shown.item.command, shown.text
  M.hide()
  insert(text)
  if command then
    client:request("workspace/executeCommand", {
      command = command.command,
      arguments = command.arguments,
    }, function() end)
  end
end

function M.accept_word()
  if shown then
    accept_part(shown.text:match("^%s*[%w_]+") or shown.text:match("^%s*[^%w_%s]+") or shown.text)
  end
end

function M.accept_line()
  if shown then
    accept_part(shown.text:match("^\n?[^\n]*"))
  end
end

function M.dismiss()
  if shown then
    notify("textDocument/didRejectCompletion")
    M.hide()
  end
end

return M
