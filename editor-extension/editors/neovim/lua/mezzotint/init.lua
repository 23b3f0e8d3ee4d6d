-- Ghost text from Mezzotint's language server, drawn with extmarks. Neovim 0.11 or later.
--
--   require("mezzotint").setup()
--
-- takes these options (what is shown are the defaults):
--   cmd       = { "mezzotint", "lsp" }
--   settings  = {}          -- the section `mezzotint`: docs/editors-protocol.md
--   filetypes = nil         -- nil: every file
--   keys      = { accept = "<Tab>", accept_word = "<C-Right>", accept_line = "<C-M-Right>",
--                 dismiss = "<C-]>", trigger = "<M-\\>" }
-- A key does what it did before wherever no ghost text is shown. `false` maps none.
local ghost = require("mezzotint.ghost")

local M = {}

local DEFAULTS = {
  cmd = { "mezzotint", "lsp" },
  settings = {},
  filetypes = nil,
  keys = {
    accept = "<Tab>",
    accept_word = "<C-Right>",
    accept_line = "<C-M-Right>",
    dismiss = "<C-]>",
    trigger = "<M-\\>",
  },
}

local status = { kind = "normal", message = "not started" }

--- For a status line: `%{v:lua.require'mezzotint'.status()}`.
function M.status()
  local latency = type(status.ms) == "number" and (" %d ms"):format(status.ms) or ""
  return ("Mezzotint: %s%s"):format(status.message, latency)
end

local function map(key, act, description)
  if not key then
    return
  end
  vim.keymap.set("i", key, function()
    -- Scheduled: an expression mapping must not change the text itself.
    if ghost.is_shown() then
      vim.schedule(act)
      return ""
    end
    return vim.api.nvim_replace_termcodes(key, true, true, true)
  end, { expr = true, replace_keycodes = false, desc = "Mezzotint: " .. description })
end

local function create_autocommands()
  local group = vim.api.nvim_create_augroup("mezzotint", {})
  local function on(events, callback)
    vim.api.nvim_create_autocmd(events, { group = group, callback = callback })
  end
  on({ "TextChangedI", "CursorMovedI", "InsertEnter" }, function()
    -- A snippet's placeholders are the user's to fill.
    if not vim.snippet.active() then
      ghost.update()
    end
  end)
  on({ "InsertLeave", "BufLeave" }, ghost.hide)
end

function M.setup(options)
  local config = vim.tbl_deep_extend("force", DEFAULTS, options or {})
  vim.lsp.config("mezzotint", {
    cmd = config.cmd,
    filetypes = config.filetypes,
    settings = { mezzotint = config.settings },
    capabilities = { textDocument = { inlineCompletion = vim.empty_dict() } },
    handlers = {
      ["mezzotint/status"] = function(_, params)
        status = params
        vim.cmd.redrawstatus()
      end,
    },
  })
  vim.lsp.enable("mezzotint")
  local keys = config.keys
  map(keys.accept, ghost.accept, "accept the suggestion")
  map(keys.accept_word, ghost.accept_word, "accept its next word")
  map(keys.accept_line, ghost.accept_line, "accept its next line")
  map(keys.dismiss, ghost.dismiss, "dismiss the suggestion")
  if keys.trigger then
    vim.keymap.set("i", keys.trigger, function() ghost.request(true) end, { desc = "Mezzotint: suggest" })
  end
  for name, run in pairs({
    MezzotintFillHere = function() require("mezzotint.fill").here() end,
    MezzotintFillHoles = function() require("mezzotint.fill").holes() end,
    MezzotintStatus = function() vim.notify(M.status()) end,
  }) do
    vim.api.nvim_create_user_command(name, run, {})
  end
  create_autocommands()
end

return M
