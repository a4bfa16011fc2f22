// vrust for Node.js, as an ES module.

import vrust from './index.js';

export const { Engine, VrustError, version, buildInfo } = vrust;
export default vrust;
