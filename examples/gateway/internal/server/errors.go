package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	vrust "github.com/vrust/vrust/bindings/go"
)

// apiError is an error as OpenAI's clients read it. Code is the HTTP status.
type apiError struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    int     `json:"code"`
}

func (e *apiError) Error() string { return e.Message }

var errorTypes = map[int]string{
	http.StatusBadRequest:            "BadRequestError",
	http.StatusNotFound:              "NotFoundError",
	http.StatusMethodNotAllowed:      "MethodNotAllowedError",
	http.StatusRequestTimeout:        "RequestTimeoutError",
	http.StatusRequestEntityTooLarge: "RequestTooLargeError",
	http.StatusUnsupportedMediaType:  "UnsupportedMediaTypeError",
	http.StatusUnprocessableEntity:   "UnprocessableEntityError",
	http.StatusInternalServerError:   "InternalServerError",
	http.StatusNotImplemented:        "NotImplementedError",
	http.StatusServiceUnavailable:    "ServiceUnavailableError",
}

// fail makes an error of an HTTP status, about a parameter unless that is "".
func fail(status int, param, format string, args ...any) *apiError {
	e := &apiError{Message: fmt.Sprintf(format, args...), Type: errorTypes[status], Code: status}
	if e.Type == "" {
		e.Type = http.StatusText(status)
	}
	if param != "" {
		e.Param = &param
	}
	return e
}

func badRequest(param, format string, args ...any) *apiError {
	return fail(http.StatusBadRequest, param, format, args...)
}

// asAPIError gives any error its status. What is not known to be the client's is a plain 500 that
// says nothing about the server.
func asAPIError(err error) *apiError {
	var known *apiError
	var failure *vrust.Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &tooLarge):
		return fail(http.StatusRequestEntityTooLarge, "",
			"The request's body is larger than the limit of %d bytes.", tooLarge.Limit)
	case errors.As(err, &failure):
		status, param := statusOf(failure.Code), failure.Field()
		if status != http.StatusBadRequest {
			param = "" // Nothing in the request is at fault.
		}
		return fail(status, param, "%s", failure.Message)
	}
	return fail(http.StatusInternalServerError, "", "Internal server error")
}

func statusOf(code vrust.Code) int {
	switch code {
	case vrust.ErrInvalidArgument, vrust.ErrUnsupported, vrust.ErrTemplate,
		vrust.ErrContextLength, vrust.ErrTokenizer, vrust.ErrGrammar:
		return http.StatusBadRequest
	case vrust.ErrQueueFull, vrust.ErrShuttingDown, vrust.ErrOutOfMemory:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// writeError answers with an error. Busy and draining servers ask the client to come again.
func writeError(w http.ResponseWriter, err error) {
	e := asAPIError(err)
	if e.Code == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	writeJSON(w, e.Code, map[string]any{"error": e})
}

// writeJSON answers with a JSON document.
func writeJSON(w http.ResponseWriter, status int, document any) {
	body, err := json.Marshal(document)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"error":{"message":"Internal `+
			`server error","type":"InternalServerError","param":null,"code":500}}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
