// Package web is the server's page: a chat and live figures. Its files are part of the binary.
package web

import (
	"embed"
	"net/http"
)

//go:embed index.html page.css page.js
var files embed.FS

// policy lets the page load and reach nothing but this server.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; " +
	"img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Handler serves the page at / and its parts beside it.
func Handler() http.Handler {
	inner := http.FileServerFS(files)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy", policy)
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Referrer-Policy", "no-referrer")
		inner.ServeHTTP(w, r)
	})
}
