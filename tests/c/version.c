/* version: which library this is. */

#include "harness.h"

int main(void) {
  char wanted[64];
  CHECK(vrust_abi_version() == VRUST_ABI_VERSION);
  CHECK(strcmp(vrust_version_string(), VRUST_VERSION) == 0);
  snprintf(wanted, sizeof wanted, "%d.%d.%d", VRUST_VERSION_MAJOR, VRUST_VERSION_MINOR,
           VRUST_VERSION_PATCH);
  CHECK(strcmp(wanted, VRUST_VERSION) == 0);
  CHECK(strstr(vrust_build_info_json(), "\"version\":\"" VRUST_VERSION "\"") != NULL);
  CHECK(strcmp(vrust_status_name(VRUST_OK), "OK") == 0);
  CHECK(strcmp(vrust_status_name(VRUST_ERROR_CANCELLED), "CANCELLED") == 0);
  CHECK(strcmp(vrust_status_name(-12345), "UNKNOWN") == 0);
  return 0;
}
