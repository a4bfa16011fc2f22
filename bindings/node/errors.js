'use strict';

/** What went wrong in one call or one request. */
class VrustError extends Error {
  /**
   * @param {string} message for people: names the field, its limit and the value given
   * @param {string} code the status by name, such as "INVALID_ARGUMENT"
   * @param {number} status the status by number
   * @param {boolean} retryable whether the same call may succeed later
   * @param {string} detail details, a JSON object
   */
  constructor(message, code, status, retryable, detail) {
    super(message || code);
    this.code = code;
    this.status = status;
    this.retryable = retryable;
    this.detail = JSON.parse(detail || '{}');
  }
}
VrustError.prototype.name = 'VrustError';

/** An argument that the binding itself refuses. */
function invalidArgument(field, message) {
  const detail = JSON.stringify({ field });
  return new VrustError(`${field}: ${message}`, 'INVALID_ARGUMENT', -1, false, detail);
}

module.exports = { VrustError, invalidArgument };
