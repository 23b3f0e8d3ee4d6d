-- Asks the language server for completions at the end of a line and puts the first one there.
-- Usage: nvim --clean --headless -n -l complete_line.lua JSON, where JSON holds
--   command    the language server's
--   settings   its section `mezzotint`
--   file, line where to complete; the line counts from 1
--   timeoutMs  how long the server may take
-- Prints a JSON object: {encoding, offered, text}, text being the buffer's afterwards.
local task = vim.json.decode(_G.arg[1])

vim.cmd.edit(vim.fn.fnameescape(task.file))
local client_id = assert(vim.lsp.start({
  name = "mezzotint",
  cmd = task.command,
  root_dir = vim.fs.dirname(task.file),
  settings = { mezzotint = task.settings },
}))
local client = assert(vim.lsp.get_client_by_id(client_id))
local started = vim.wait(30000, function()
  return client.initialized and vim.lsp.buf_is_attached(0, client_id)
end)
assert(started, "the server did not answer initialize")

local column = #vim.api.nvim_buf_get_lines(0, task.line - 1, task.line, true)[1]
-- Normal mode has no place behind the last character.
vim.wo.virtualedit = "onemore"
vim.api.nvim_win_set_cursor(0, { task.line, column })
local params = vim.lsp.util.make_position_params(0, client.offset_encoding)
local response = assert(client:request_sync("textDocument/completion", params, task.timeoutMs, 0))
assert(not response.err, vim.inspect(response.err))
local items = response.result.items
if items[1] then
  vim.lsp.util.apply_text_edits({ items[1].textEdit }, vim.api.nvim_get_current_buf(), client.offset_encoding)
end

io.stdout:write(vim.json.encode({
  encoding = client.offset_encoding,
  offered = #items,
  text = table.concat(vim.api.nvim_buf_get_lines(0, 0, -1, true), "\n") .. "\n",
}), "\n")
client:stop()
assert(vim.wait(10000, function() return client:is_stopped() end), "the server did not leave")
