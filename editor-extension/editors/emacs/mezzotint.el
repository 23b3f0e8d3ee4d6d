;;; mezzotint.el --- Ghost text from Mezzotint's language server -*- lexical-binding: t -*-

;; SPDX-License-Identifier: Apache-2.0
;; Package-Requires: ((emacs "28.1"))

;;; Commentary:

;; With eglot or lsp-mode:
;;
;;   (require 'mezzotint)
;;   (mezzotint-setup-eglot '(python-mode))   ; or (mezzotint-setup-lsp)
;;   (add-hook 'python-mode-hook #'mezzotint-mode)
;;
;; and `M-x eglot' or `M-x lsp' as ever.  eglot runs one server for a mode, lsp-mode runs
;; Mezzotint beside the others.  While ghost text is shown, TAB accepts it, C-<right> its next
;; word, C-M-<right> its next line, and C-g dismisses it; otherwise the keys do what they always
;; do.  Without `mezzotint-mode', Mezzotint's suggestions are in `completion-at-point'.

;;; Code:

(require 'cl-lib)
(require 'subr-x)

(defvar eglot-server-programs)
(defvar eglot-workspace-configuration)
(defvar lsp-language-id-configuration)
(declare-function eglot-current-server "eglot")
(declare-function eglot--signal-textDocument/didChange "eglot")
(declare-function eglot--TextDocumentPositionParams "eglot")
(declare-function eglot--lsp-position-to-point "eglot")
(declare-function jsonrpc-async-request "jsonrpc")
(declare-function jsonrpc-notify "jsonrpc")
(declare-function lsp-register-client "lsp-mode")
(declare-function lsp-register-custom-settings "lsp-mode")
(declare-function lsp-stdio-connection "lsp-mode")
(declare-function lsp-request-async "lsp-mode")
(declare-function lsp-notify "lsp-mode")
(declare-function lsp--text-document-position-params "lsp-mode")
(declare-function lsp--position-to-point "lsp-mode")
(declare-function make-lsp-client "lsp-mode")

(defgroup mezzotint nil "Code completion by masked diffusion." :group 'tools)

(defcustom mezzotint-command '("mezzotint" "lsp")
  "Program that starts the language server, and its arguments."
  :type '(repeat string))

(defcustom mezzotint-settings nil
  "The server's settings: a property list such as (:trigger \"manual\")."
  :type 'plist)

(defface mezzotint-ghost '((t :inherit shadow :slant italic)) "Ghost text.")

(defvar-local mezzotint--overlay nil "Shows the ghost text; nil when there is none.")
(defvar-local mezzotint--text "" "What is left to accept.")
(defvar-local mezzotint--item nil "The suggestion as the server sent it, decoded.")
(defvar-local mezzotint--taken 0 "How much of it has been accepted, in UTF-16 units.")
(defvar-local mezzotint--tick nil "The buffer's state that was last asked about.")

;;; The two clients

(defun mezzotint--uses-eglot ()
  (and (fboundp 'eglot-current-server) (eglot-current-server)))

(defun mezzotint--uses-lsp ()
  (bound-and-true-p lsp-managed-mode))

(defun mezzotint--get (object &rest keys)
  "The value at KEYS of a decoded JSON OBJECT: a property list or a hash table."
  (dolist (key keys object)
    (setq object (cond ((hash-table-p object) (gethash key object))
                       (t (plist-get object (intern (concat ":" key))))))))

(defun mezzotint--request (context callback)
  "Ask for inline completion at point; CALLBACK gets the answer."
  (cond
   ((mezzotint--uses-eglot)
    (eglot--signal-textDocument/didChange)
    (jsonrpc-async-request
     (eglot-current-server) :textDocument/inlineCompletion
     (append (eglot--TextDocumentPositionParams) (list :context context))
     :success-fn callback :error-fn #'ignore :timeout-fn #'ignore))
   ((mezzotint--uses-lsp)
    (lsp-request-async
     "textDocument/inlineCompletion"
     (append (lsp--text-document-position-params) (list :context context))
     callback :mode 'tick :error-handler #'ignore :cancel-token :mezzotint))))

(defun mezzotint--notify (method &rest extra)
  (let ((params (append (list :item mezzotint--item) extra)))
    (cond ((mezzotint--uses-eglot)
           (jsonrpc-notify (eglot-current-server) (intern (concat ":" method)) params))
          ((mezzotint--uses-lsp) (lsp-notify method params)))))

(defun mezzotint--execute (command)
  "Tell the server that the suggestion with COMMAND was accepted."
  (let ((params (list :command (mezzotint--get command "command")
                      :arguments (mezzotint--get command "arguments"))))
    (cond ((mezzotint--uses-eglot)
           (jsonrpc-async-request (eglot-current-server) :workspace/executeCommand params
                                  :success-fn #'ignore :error-fn #'ignore))
          ((mezzotint--uses-lsp)
           (lsp-request-async "workspace/executeCommand" params #'ignore
                              :error-handler #'ignore)))))

(defun mezzotint--point-of (position)
  (cond ((mezzotint--uses-eglot) (eglot--lsp-position-to-point position))
        (t (lsp--position-to-point position))))

;;; Asking and showing

(defun mezzotint--hide ()
  (when mezzotint--overlay
    (delete-overlay mezzotint--overlay)
    (setq mezzotint--overlay nil))
  (mezzotint-shown-mode -1))

(defun mezzotint--draw ()
  (unless mezzotint--overlay
    (setq mezzotint--overlay (make-overlay (point) (point) nil t t)))
  (move-overlay mezzotint--overlay (point) (point))
  (let ((text (propertize mezzotint--text 'face 'mezzotint-ghost)))
    (put-text-property 0 1 'cursor t text)
    (overlay-put mezzotint--overlay 'after-string text))
  (mezzotint-shown-mode 1))

(defun mezzotint--show (item)
  "Show what ITEM adds behind point, if it replaces nothing there."
  (let* ((range (mezzotint--get item "range"))
         (start (mezzotint--point-of (mezzotint--get range "start")))
         (end (mezzotint--point-of (mezzotint--get range "end")))
         (insert-text (mezzotint--get item "insertText"))
         (before (buffer-substring-no-properties start (point))))
    (when (and (= end (point)) (string-prefix-p before insert-text)
               (< (length before) (length insert-text)))
      (setq mezzotint--item item
            mezzotint--taken 0
            mezzotint--text (substring insert-text (length before)))
      (mezzotint--draw)
      (mezzotint--notify "textDocument/didShowCompletion"))))

(defun mezzotint-suggest (&optional automatic)
  "Ask for a suggestion at point; AUTOMATIC: because of what was typed."
  (interactive)
  (mezzotint--hide)
  (let ((buffer (current-buffer)) (tick (buffer-modified-tick)) (place (point)))
    (mezzotint--request
     (list :triggerKind (if automatic 2 1))
     (lambda (answer)
       (when (buffer-live-p buffer)
         (with-current-buffer buffer
           (let ((items (mezzotint--get answer "items")))
             (when (and (= tick (buffer-modified-tick)) (= place (point))
                        (> (length items) 0))
               (mezzotint--show (elt items 0))))))))))

(defun mezzotint--follow ()
  "After a command: typing into the suggestion keeps it, any other change asks anew."
  (let ((typed (and mezzotint--overlay
                    (>= (point) (overlay-start mezzotint--overlay))
                    (buffer-substring-no-properties
                     (overlay-start mezzotint--overlay) (point)))))
    (cond
     ((and typed (string-empty-p typed)
           (equal mezzotint--tick (buffer-chars-modified-tick))))
     ((and typed (not (string-empty-p typed)) (string-prefix-p typed mezzotint--text)
           (< (length typed) (length mezzotint--text)))
      (mezzotint--advance typed)
      (mezzotint--draw))
     ((equal mezzotint--tick (buffer-chars-modified-tick)) (mezzotint--hide))
     ((or (region-active-p) (minibufferp)) (mezzotint--hide))
     (t (mezzotint-suggest t)))
    (setq mezzotint--tick (buffer-chars-modified-tick))))

(defun mezzotint--advance (text)
  "TEXT of the suggestion is in the buffer now."
  (setq mezzotint--text (substring mezzotint--text (length text)))
  (cl-incf mezzotint--taken (/ (length (encode-coding-string text 'utf-16le)) 2)))

;;; Accepting

(defun mezzotint-accept ()
  "Insert the suggestion."
  (interactive)
  (let ((text mezzotint--text) (command (mezzotint--get mezzotint--item "command")))
    (mezzotint--hide)
    (insert text)
    (setq mezzotint--tick (buffer-chars-modified-tick))
    (when command (mezzotint--execute command))))

(defun mezzotint--accept-match (pattern)
  (if (not (and (string-match pattern mezzotint--text)
                (< (match-end 0) (length mezzotint--text))))
      (mezzotint-accept)
    (let ((text (match-string 0 mezzotint--text)))
      (mezzotint--advance text)
      (delete-overlay mezzotint--overlay)
      (insert text)
      (setq mezzotint--tick (buffer-chars-modified-tick))
      (mezzotint--draw)
      (mezzotint--notify "textDocument/didPartiallyAcceptCompletion"
                         :acceptedLength mezzotint--taken))))

(defun mezzotint-accept-word ()
  "Insert the suggestion's next word."
  (interactive)
  (mezzotint--accept-match "\\`[[:space:]\n]*\\(?:[[:alnum:]_]+\\|[^[:alnum:]_[:space:]\n]+\\)"))

(defun mezzotint-accept-line ()
  "Insert the suggestion's next line."
  (interactive)
  (mezzotint--accept-match "\\`\n?[^\n]*"))

(defun mezzotint-dismiss ()
  "Take the suggestion away."
  (interactive)
  (mezzotint--notify "textDocument/didRejectCompletion")
  (mezzotint--hide))

(defvar mezzotint-shown-mode-map
  (let ((map (make-sparse-keymap)))
    (define-key map (kbd "TAB") #'mezzotint-accept)
    (define-key map (kbd "<tab>") #'mezzotint-accept)
    (define-key map (kbd "C-<right>") #'mezzotint-accept-word)
    (define-key map (kbd "C-M-<right>") #'mezzotint-accept-line)
    (define-key map (kbd "C-g") #'mezzotint-dismiss)
    map)
  "Keys while ghost text is shown.")

(define-minor-mode mezzotint-shown-mode
  "Is on while ghost text is shown, for its keys."
  :init-value nil)

;;;###autoload
(define-minor-mode mezzotint-mode
  "Show Mezzotint's suggestions as ghost text while typing."
  :lighter " Mezzotint"
  (if mezzotint-mode
      (progn
        (setq mezzotint--tick (buffer-chars-modified-tick))
        (add-hook 'post-command-hook #'mezzotint--follow nil t))
    (remove-hook 'post-command-hook #'mezzotint--follow t)
    (mezzotint--hide)))

;;; Set-up

;;;###autoload
(defun mezzotint-setup-eglot (modes)
  "Have eglot run Mezzotint in MODES."
  (require 'eglot)
  (setq-default eglot-workspace-configuration
                (plist-put (default-value 'eglot-workspace-configuration)
                           :mezzotint mezzotint-settings))
  (add-to-list 'eglot-server-programs (cons modes mezzotint-command)))

;;;###autoload
(defun mezzotint-setup-lsp ()
  "Have lsp-mode run Mezzotint beside the other servers of a buffer."
  (require 'lsp-mode)
  (lsp-register-client
   (make-lsp-client
    :new-connection (lsp-stdio-connection (lambda () mezzotint-command))
    :activation-fn (lambda (&rest _) t)
    :add-on? t
    ;; lsp-mode counts characters; before version 9 it does not say so.
    :custom-capabilities '((general . ((positionEncodings . ["utf-32"]))))
    :initialization-options (lambda () mezzotint-settings)
    :notification-handlers (let ((handlers (make-hash-table :test 'equal)))
                             (puthash "mezzotint/status" #'ignore handlers)
                             handlers)
    :server-id 'mezzotint)))

(provide 'mezzotint)
;;; mezzotint.el ends here
